//! Rotating the data key, and sealing what is kept under the newest one.
//!
//! Whoever leaves takes the data keys along. What is sealed from then on is sealed with one it never had; so that its
//! own do not go on opening what was kept before, the leader goes over all keys and seals those under older data keys
//! anew: a few at a time, as commands, with a rest after each, beside all other work. How far it has come is in the
//! replicated state, and the next leader goes on from there. At the end the older data keys are dropped.
//!
//! | a crash, or a new leader, behind | leaves |
//! |---|---|
//! | counting | nothing |
//! | a step proposed | the step done or not; done twice, the second is refused |
//! | the last step | a pass that is complete: the next leader drops the older data keys |
//! | dropping them | nothing to do |
//!
//! # Who may still need an older data key
//!
//! Nobody, at the entry that drops it and after: apply has looked at every key, and takes no new one under an older data
//! key. Before that entry everybody does, and has it: a replica that lags, a snapshot, a backup and the survivor that a
//! cluster is recovered from hold the keyring as of their own entry beside the keys as of that entry. For the same reason
//! a reader takes a key and the keyring from one view.
//!
//! What is not reached: logs, snapshots and backups from before, for as long as they lie on some disk. Who has those and
//! an older keyring opens what is in them; only new recovery keys on the devices help against that.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use uuid::Uuid;

use crate::escrow::apply::{RESEAL_ROWS_MAX, sealed_digest};
use crate::escrow::command::{
    Action, Command, DropDataKeys, Refusal, Reply, Reseal, ResealedKey, RotateKeyring,
};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{Identity, KeyId, RequestId};
use crate::escrow::lookup;
use crate::escrow::records::{KeyRecord, ResealRecord, Source};
use crate::seal::{Keyring, Resealed};

use super::error::NodeError;
use super::membership::DataKeys;
use super::node::Node;
use super::{now, on_own_thread};

/// Between two looks of the leader at whether there is anything to seal anew.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Keys looked at in one step.
const STEP_ROWS: u32 = 64;
/// Ciphertext sealed anew in one step, in bytes, about: past it the step ends early. Packages are large.
const STEP_BYTES_MAX: usize = 256 * 1_024;
/// Rest after each step, or as long as the step took if that is longer: at most 1,280 keys a second.
const STEP_REST: Duration = Duration::from_millis(50);
/// Keys counted at a time.
const COUNT_ROWS: usize = 1_024;
/// Rest after each of these.
const COUNT_REST: Duration = Duration::from_millis(5);
/// After a pass that left keys behind which cannot be opened, the next one: what is damaged here may be mended meanwhile.
const AGAIN_AFTER: Duration = Duration::from_secs(3_600);
/// How often a rotation is proposed, if each time another command replaces the keyring first.
const ROTATIONS_MAX: usize = 4;

/// Who asks for a rotation, and where.
#[derive(Debug, Clone)]
pub struct RotationOrder {
    /// The same for every retry.
    pub request: RequestId,
    /// The operator.
    pub by: Identity,
    /// Where the operator asked.
    pub source: Source,
}

/// What the leader has to do next.
enum Due {
    Nothing,
    /// Count, and look at the first keys.
    Begin,
    /// Look at the next keys.
    GoOn(KeyId),
    /// Drop what nothing is sealed under any more.
    Drop,
}

impl Node {
    /// Replaces the data key by a new one, through the leader, and answers its version.
    ///
    /// # Errors
    /// As [`Node::propose`]; [`NodeError::Keyring`] if the keyring cannot be used or has no room for another data key;
    /// [`NodeError::Refused`].
    pub async fn rotate_data_key(&self, order: RotationOrder) -> Result<u32, NodeError> {
        let mut attempts = 1..ROTATIONS_MAX;
        loop {
            let node = self.clone();
            let keyring = on_own_thread(move || node.resealed(None, None, DataKeys::Rotated)).await?;
            let generation = keyring.generation;
            let command = Command {
                request: order.request,
                at: now(),
                by: order.by.clone(),
                source: order.source.clone(),
                action: Action::RotateKeyring(RotateKeyring { keyring }),
            };
            let committed = self.propose(&command).await?;
            match committed.reply {
                Reply::KeyringRotated { key_version } => return Ok(key_version),
                Reply::Refused(refusal) => {
                    // Of a replica that lags: once it has caught up with the refusal, it has the keyring of that time.
                    self.wait_applied(committed.position.index).await?;
                    let is_moved =
                        matches!(refusal, Refusal::Conflict(_)) && self.keyring_has_moved(generation)?;
                    if !is_moved || attempts.next().is_none() {
                        return Err(refusal.into());
                    }
                }
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Starts sealing anew whatever needs it, whenever this node leads. Ends with the node.
    pub(super) fn watch_resealing(&self) {
        let (weak, stop) = (Arc::downgrade(&self.inner), self.inner.stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            let mut again = None;
            let mut ticks = interval(LOOK_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(inner) = weak.upgrade() else { return };
                if let Err(error) = (Self { inner }).reseal(&mut again).await {
                    tracing::debug!(%error, "sealing keys anew is interrupted");
                }
            }
        }));
    }

    /// Seals anew until there is nothing to do for now, or this node does not lead any more.
    async fn reseal(&self, again: &mut Option<Instant>) -> Result<(), NodeError> {
        loop {
            if self.leader() != Some(self.options().id) || self.quarantine().is_some() {
                // Of this node's own attempts: another leader may have mended what this one could not open.
                *again = None;
                return Ok(());
            }
            let (node, may_repeat) = (self.clone(), again.is_none_or(|at| at <= Instant::now()));
            let began = Instant::now();
            let pass = match on_own_thread(move || node.due(may_repeat)).await? {
                Due::Nothing => return Ok(()),
                Due::Begin => {
                    let to_do = self.count_old().await?;
                    tracing::info!(keys = to_do, "sealing keys under the current data key");
                    self.step(None, to_do).await?
                }
                Due::GoOn(after) => self.step(Some(after), 0).await?,
                Due::Drop => return self.drop_old_data_keys().await,
            };
            // Another leader was faster, or the data key was rotated: looked at again with the next tick.
            let Some(pass) = pass else { return Ok(()) };
            if pass.done {
                *again = (pass.left > 0).then(|| Instant::now() + AGAIN_AFTER);
                told_of(&pass);
            }
            sleep(STEP_REST.max(began.elapsed())).await;
        }
    }

    /// What is to be done by the state as it is. Opens the keyring.
    fn due(&self, may_repeat: bool) -> Result<Due, NodeError> {
        let view = self.view()?;
        let Some(stored) = lookup::keyring(&view)? else { return Ok(Due::Nothing) };
        let pass = lookup::resealing(&view)?.filter(|pass| pass.key_version == stored.current_key_version);
        if pass.as_ref().is_some_and(|pass| pass.dropped)
            || lookup::feature_level(&view)? < FeatureLevel::RESEALING
            || !self.keyring_in(&view)?.has_old_data_keys()
        {
            return Ok(Due::Nothing);
        }
        Ok(match pass {
            None => Due::Begin,
            Some(ResealRecord { done: false, after: Some(after), .. }) => Due::GoOn(after),
            Some(ResealRecord { left: 0, .. }) => Due::Drop,
            Some(_) if may_repeat => Due::Begin,
            Some(_) => Due::Nothing,
        })
    }

    /// How many keys are under older data keys than the current one.
    async fn count_old(&self) -> Result<u64, NodeError> {
        let (mut after, mut old) = (None, 0);
        loop {
            let node = self.clone();
            let page = move || {
                let view = node.view()?;
                let current = lookup::keyring(&view)?.ok_or(NodeError::NoCluster)?.current_key_version;
                let keys = lookup::keys_after(&view, after, COUNT_ROWS)?;
                let old = keys.iter().filter(|key| !key.is_sealed_under(current)).count() as u64;
                Ok((keys.last().filter(|_| keys.len() == COUNT_ROWS).map(|key| key.id), old))
            };
            let (last, more) = on_own_thread(page).await?;
            old += more;
            if last.is_none() {
                return Ok(old);
            }
            after = last;
            sleep(COUNT_REST).await;
        }
    }

    /// Seals the next keys anew and commits that; `None` if the pass is not where this node took it to be.
    async fn step(&self, after: Option<KeyId>, to_do: u64) -> Result<Option<ResealRecord>, NodeError> {
        let node = self.clone();
        let step = on_own_thread(move || {
            let view = node.view()?;
            let keyring = node.keyring_in(&view)?;
            let keys = lookup::keys_after(&view, after, STEP_ROWS as usize)?;
            drop(view);
            Ok(step_of(&keyring, &keys, after, to_do))
        });
        let action = Action::Reseal(step.await?);
        match self.propose(&self.own_command(action)).await?.reply {
            Reply::Resealed(pass) => Ok(Some(pass)),
            Reply::OldDataKey { .. } | Reply::Refused(Refusal::Conflict(_)) => Ok(None),
            Reply::Refused(refusal) => Err(refusal.into()),
            other => Err(unexpected(&other)),
        }
    }

    /// Takes the older data keys out of the keyring.
    async fn drop_old_data_keys(&self) -> Result<(), NodeError> {
        // A membership change seals the keyring too; it goes first.
        let Some(_no_change) = self.background_turn() else { return Ok(()) };
        let node = self.clone();
        let keyring = on_own_thread(move || node.resealed(None, None, DataKeys::OnlyCurrent)).await?;
        let key_version = keyring.current_key_version;
        match self.propose(&self.own_command(Action::DropDataKeys(DropDataKeys { keyring }))).await?.reply {
            Reply::DataKeysDropped => {
                tracing::info!(
                    key_version,
                    "every key is under the current data key; older data keys are dropped"
                );
                Ok(())
            }
            // The data key was rotated meanwhile.
            Reply::Refused(Refusal::Conflict(_)) => Ok(()),
            Reply::Refused(refusal) => Err(refusal.into()),
            other => Err(unexpected(&other)),
        }
    }

    /// A command of this node's own.
    fn own_command(&self, action: Action) -> Command {
        Command {
            request: RequestId(Uuid::new_v4()),
            at: now(),
            by: self.inner.peers.identity(),
            source: Source { node: self.options().id, address: String::new() },
            action,
        }
    }
}

/// The step over `keys`, the next ones behind `after`; over fewer of them if they are large.
fn step_of(keyring: &Keyring, keys: &[KeyRecord], after: Option<KeyId>, to_do: u64) -> Reseal {
    const { assert!(STEP_ROWS <= RESEAL_ROWS_MAX) };
    let key_version = keyring.current_version();
    let mut step = Reseal { key_version, after, to_do, rows: STEP_ROWS, keys: Vec::new() };
    let mut bytes = 0;
    for (looked_at, key) in (1..).zip(keys) {
        if key.is_sealed_under(key_version) {
            continue;
        }
        match keyring.seal_again(key) {
            Ok(Resealed { sealed, sealed_package }) => {
                bytes += sealed.ciphertext.len();
                bytes += sealed_package.as_ref().map_or(0, |package| package.ciphertext.len());
                step.keys.push(ResealedKey {
                    key_id: key.id,
                    was: sealed_digest(key),
                    sealed,
                    sealed_package,
                });
            }
            // It is counted where it is applied, and keeps the older data keys.
            Err(error) => tracing::error!(%error, key_id = %key.id, "a kept key cannot be sealed anew"),
        }
        if bytes >= STEP_BYTES_MAX {
            step.rows = looked_at;
            break;
        }
    }
    step
}

fn told_of(pass: &ResealRecord) {
    let ResealRecord { key_version, resealed, left, .. } = pass;
    if *left > 0 {
        tracing::error!(key_version, resealed, left, "keys cannot be sealed anew: older data keys are kept");
    } else {
        tracing::info!(key_version, resealed, "every key was looked at and is under the current data key");
    }
}

fn unexpected(reply: &Reply) -> NodeError {
    NodeError::Fatal(format!("unexpected answer {reply:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escrow::ids::Timestamp;
    use crate::escrow::records::{KeyState, LogPosition, Sealed};
    use crate::escrow::secrets::SecretKind;
    use crate::seal::{Part, SealContext};
    use crate::secret::Secret;

    fn kept(keyring: &Keyring, number: u128, secret: &str) -> KeyRecord {
        let (machine, volume) = ("PC-0001".parse().unwrap(), "C:".parse().unwrap());
        let (key_id, kind) = (KeyId(Uuid::from_u128(number)), SecretKind::Generic);
        let secret = Secret::from(secret.to_owned());
        let context = SealContext { machine: &machine, volume: &volume, key_id, kind, part: Part::Secret };
        KeyRecord {
            id: key_id,
            sealed: keyring.seal(&context, &secret).unwrap(),
            machine,
            volume,
            kind,
            sealed_package: None,
            fingerprint: keyring.fingerprint(&secret),
            state: KeyState::Active,
            escrowed_at: Timestamp(1),
            escrowed_by: "spiffe://acme/agent/PC-0001".parse().unwrap(),
            position: LogPosition::default(),
        }
    }

    fn ids(step: &Reseal) -> Vec<u128> {
        step.keys.iter().map(|key| key.key_id.0.as_u128()).collect()
    }

    #[test]
    fn a_step_seals_what_needs_it_and_leaves_out_what_does_not_open() {
        let old = Keyring::generate().unwrap();
        let new = old.rotated().unwrap();
        let damaged = KeyRecord {
            sealed: Sealed { key_version: 1, nonce: [0; 12], ciphertext: vec![0; 20] },
            ..kept(&old, 3, "three")
        };
        let keys = [kept(&old, 1, "one"), kept(&new, 2, "two"), damaged, kept(&old, 4, "four")];
        let step = step_of(&new, &keys, None, 3);
        assert_eq!((ids(&step), step.rows, step.to_do, step.key_version), (vec![1, 4], STEP_ROWS, 3, 2));
        assert_eq!(step.keys[0].was, sealed_digest(&keys[0]));
        assert!(step.keys.iter().all(|key| key.sealed.key_version == 2));
    }

    #[test]
    fn a_step_over_large_keys_ends_early_and_looks_at_no_more_than_it_sealed() {
        let old = Keyring::generate().unwrap();
        let new = old.rotated().unwrap();
        let large = "x".repeat(STEP_BYTES_MAX / 2);
        let keys: Vec<_> = (1..=5).map(|number| kept(&old, number, &large)).collect();
        let step = step_of(&new, &keys, Some(KeyId(Uuid::nil())), 0);
        assert_eq!((ids(&step), step.rows), (vec![1, 2], 2));
    }
}

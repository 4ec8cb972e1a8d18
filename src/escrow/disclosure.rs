//! Who may see a key: every rule of a reveal, in one place.
//!
//! [`decide`] looks at the state, the policy and what is asked, and changes nothing, so that apply and a node that has
//! lost its quorum judge by the same rules. What is asked is judged in this order, and the first rule that does not hold
//! is the answer: the role, the key, the user, the kind of secret, the limits, the approval. The texts of refusals say no
//! more of a key or its machine than the caller may know.

use super::command::Refusal;
use super::ids::{Identity, KeyId, MachineId, Role, Timestamp, UserName};
use super::policy::document::{Limits, Policy};
use super::policy::{Operation, allows, must_name_user};
use super::records::{Approval, KeyRecord, MachineRecord, RevealTally};
use super::state::{Rows, StateError};
use super::tally::{DAY_MS, HOUR_MS, Slots};

/// Most requests of one person that are denied within an hour, each with its reason and on record. What comes behind them
/// is not looked at: trying does not tell who uses a machine, and fills neither the trail nor what is remembered.
pub const DENIALS_PER_HOUR_MAX: u32 = 100;

/// A reveal that is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Who asks.
    pub by: &'a Identity,
    /// Which key.
    pub key_id: KeyId,
    /// For whom, if named.
    pub user: Option<&'a UserName>,
    /// Why, without white space around it.
    pub reason: &'a str,
    /// When.
    pub at: Timestamp,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The key may be shown.
    Granted(Box<Granted>),
    /// Somebody else must approve it first.
    NeedsApproval {
        /// The key.
        key: Box<KeyRecord>,
        /// What the same person asked for the same key before, with the same words, and waits for still.
        waiting: Option<Box<Approval>>,
    },
    /// The key may not be shown.
    Denied {
        /// Why, as the caller is told.
        refusal: Refusal,
        /// The machine it was about, if there is such a key.
        machine: Option<MachineId>,
    },
}

/// A key that may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// The key; its secret is sealed.
    pub key: KeyRecord,
    /// Its machine.
    pub machine: MachineRecord,
    /// The approval this uses up, if one was needed.
    pub approval: Option<Approval>,
}

/// What decisions rest on besides the rows.
#[derive(Debug, Clone)]
pub struct Grounds<'a> {
    /// The policy that is followed.
    pub policy: &'a Policy,
    /// How often keys were revealed of late to who asks.
    pub person: RevealTally,
    /// And to all.
    pub cluster: RevealTally,
    /// What is asked must be approved by another person, whatever the machine.
    pub always_approve: bool,
}

/// Decides about a reveal.
///
/// # Errors
/// [`StateError`] if the storage fails or the machine of a key is not there.
pub fn decide<R: Rows>(rows: &R, grounds: &Grounds<'_>, asked: &Asked<'_>) -> Result<Decision, StateError> {
    let role = asked.by.role;
    let denied = |refusal, machine| Ok(Decision::Denied { refusal, machine });
    let may = allows(role, Operation::Recover);
    let Some(key) = rows.row::<KeyRecord>(&asked.key_id.row_key())? else {
        let refusal = if may { unknown(asked) } else { may_not_recover(role) };
        return denied(refusal, None);
    };
    let machine: MachineRecord = rows.required(&key.machine.row_key())?;
    let refusal = if !may {
        Some(may_not_recover(role))
    } else if let Err(refusal) = check_user(asked, &machine) {
        Some(refusal)
    } else if !grounds.policy.allows_kind(role, key.kind) {
        Some(Refusal::Denied(format!("role {role} may not reveal secrets of kind {}", key.kind)))
    } else {
        check_limits(grounds, asked.at).err()
    };
    if let Some(refusal) = refusal {
        return denied(refusal, Some(key.machine));
    }
    if !grounds.always_approve && !grounds.policy.needs_approval(&key.machine) {
        return Ok(Decision::Granted(Box::new(Granted { key, machine, approval: None })));
    }
    let approval: Option<Approval> = rows.row(&Approval::row_key(key.id, &asked.by.person()))?;
    Ok(match approval.filter(|approval| stands(approval, asked)) {
        Some(approval) if grounds.policy.grants(&approval) => {
            Decision::Granted(Box::new(Granted { key, machine, approval: Some(approval) }))
        }
        waiting => Decision::NeedsApproval { key: Box::new(key), waiting: waiting.map(Box::new) },
    })
}

/// An approval is of what was asked, word for word: who approved it approved the reason and the user as well.
fn stands(approval: &Approval, asked: &Asked<'_>) -> bool {
    approval.expires_at > asked.at
        && approval.asked_by == *asked.by
        && approval.user.as_ref() == asked.user
        && approval.reason == asked.reason
}

fn may_not_recover(role: Role) -> Refusal {
    Refusal::Denied(format!("role {role} may not reveal keys"))
}

/// An end user is not told whether a key of somebody else exists.
fn unknown(asked: &Asked<'_>) -> Refusal {
    match asked.by.role {
        Role::SelfService => not_your_machine(),
        _ => Refusal::NotFound(format!("no key {} is kept", asked.key_id)),
    }
}

fn not_your_machine() -> Refusal {
    Refusal::Denied("there is no key of this id on a machine that you are recorded as a user of".to_owned())
}

fn check_user(asked: &Asked<'_>, machine: &MachineRecord) -> Result<(), Refusal> {
    let role = asked.by.role;
    if role == Role::SelfService {
        let own = asked.by.user();
        let is_theirs = own.as_ref().is_some_and(|own| machine.users.contains(own));
        // Naming somebody else is no way around it.
        let names_another = asked.user.is_some_and(|user| Some(user) != own.as_ref());
        return if is_theirs && !names_another { Ok(()) } else { Err(not_your_machine()) };
    }
    if must_name_user(role) && !asked.user.is_some_and(|user| machine.users.contains(user)) {
        // One text for every way to be wrong, so that refusals do not help to guess who uses a machine.
        let why = format!("role {role} reveals a key only to a user of its machine, named as DOMAIN\\NAME");
        return Err(Refusal::Denied(why));
    }
    Ok(())
}

fn check_limits(grounds: &Grounds<'_>, at: Timestamp) -> Result<(), Refusal> {
    let Grounds { policy: Policy { limits, .. }, person, cluster, .. } = grounds;
    let Limits { person_per_hour, person_per_day, cluster_per_hour, cluster_per_day } = limits;
    let rules = [
        (person, *person_per_hour, HOUR_MS, "you have revealed", "an hour"),
        (person, *person_per_day, DAY_MS, "you have revealed", "a day"),
        (cluster, *cluster_per_hour, HOUR_MS, "everybody together has revealed", "an hour"),
        (cluster, *cluster_per_day, DAY_MS, "everybody together has revealed", "a day"),
    ];
    for (tally, limit, window, who, span) in rules {
        let Some(limit) = limit else { continue };
        if tally.slots.within(window, at) >= u64::from(limit) {
            let again = tally.slots.free_at(window, at, limit);
            return Err(Refusal::Denied(format!(
                "the limit is reached: {who} {limit} keys, as many as policy allows in {span}; the next one is possible at {again}"
            )));
        }
    }
    Ok(())
}

/// Whether a request of somebody is looked at who was `denied` that often.
///
/// # Errors
/// [`Refusal::Denied`] if not, saying when the next one is: a right request is told nothing else than a wrong one.
pub fn check_denials(denied: &Slots, at: Timestamp) -> Result<(), Refusal> {
    if denied.within(HOUR_MS, at) < u64::from(DENIALS_PER_HOUR_MAX) {
        return Ok(());
    }
    let again = denied.free_at(HOUR_MS, at, DENIALS_PER_HOUR_MAX);
    Err(Refusal::Denied(format!(
        "{DENIALS_PER_HOUR_MAX} of your requests came to nothing within an hour: this one was not looked at; the next one is at {again}"
    )))
}

impl RevealTally {
    /// How often nothing was revealed yet.
    pub fn none(person: Option<String>) -> Self {
        Self { person, slots: Slots::default() }
    }
}

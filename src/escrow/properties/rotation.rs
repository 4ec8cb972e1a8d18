//! A device that rotates its keys against the real apply, in any order of crashes, lost answers, late and repeated
//! requests: at no point is there a key on one of its volumes that is not kept.

use std::collections::BTreeSet;

use proptest::prelude::*;
use uuid::Uuid;

use crate::escrow::apply::apply;
use crate::escrow::command::{
    Action, Command, ConfirmKey, Escrow, RaiseFeatureLevel, Refusal, Reply, Reveal,
};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{Identity, KeyId, MachineId, RequestId, Role, Timestamp};
use crate::escrow::lookup::{self, Query};
use crate::escrow::memory::Memory;
use crate::escrow::records::{Fingerprint, KeyRecord, KeyState, LogPosition, MachineRecord, Sealed, Source};
use crate::escrow::rotation::PENDING_PER_VOLUME_MAX;
use crate::escrow::secrets::SecretKind;

/// Volumes of the device.
const VOLUMES: [&str; 2] = ["C:", "D:"];
/// The device.
const MACHINE: &str = "PC-0001";

/// What happens next. Volumes are numbers in [`VOLUMES`].
#[derive(Debug, Clone)]
enum Event {
    /// The device draws a key for a volume and asks for it to be kept.
    Escrow(usize, Delivery),
    /// It puts the key it has an answer for on the volume, beside what is there.
    Add(usize),
    /// It takes every other key off the volume.
    Remove(usize),
    /// It confirms the only key of the volume.
    Confirm(usize, Delivery),
    /// It loses all but what is on its volumes.
    Crash,
    /// The help desk sees one of the keys that are kept.
    Reveal(usize),
    /// A request that was sent at some time reaches the cluster now, again or for the first time.
    Deliver(usize),
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Delivery {
    Answered,
    AnswerLost,
    /// Somewhere on the way, perhaps for ever.
    Delayed,
}

fn event() -> impl Strategy<Value = Event> {
    let volume = || 0..VOLUMES.len();
    let delivery = || prop_oneof![4 => Just(Delivery::Answered), 1 => Just(Delivery::AnswerLost), 1 => Just(Delivery::Delayed)];
    prop_oneof![
        5 => (volume(), delivery()).prop_map(|(volume, delivery)| Event::Escrow(volume, delivery)),
        4 => volume().prop_map(Event::Add),
        4 => volume().prop_map(Event::Remove),
        4 => (volume(), delivery()).prop_map(|(volume, delivery)| Event::Confirm(volume, delivery)),
        2 => Just(Event::Crash),
        3 => any::<usize>().prop_map(Event::Reveal),
        4 => any::<usize>().prop_map(Event::Deliver),
    ]
}

#[derive(Default)]
struct Volume {
    /// The keys that open it, the newest last. On disk: they survive a crash.
    protectors: Vec<KeyId>,
    /// The key that was answered for and is not on the volume yet. In memory.
    ready: Option<KeyId>,
    /// The key in use whose confirmation was answered.
    confirmed: Option<KeyId>,
}

struct Simulation {
    state: Memory,
    index: u64,
    drawn: u128,
    /// Every request that was ever sent.
    sent: Vec<Command>,
    volumes: [Volume; VOLUMES.len()],
    revealed: BTreeSet<KeyId>,
}

impl Simulation {
    /// Both volumes are encrypted, their keys kept as releases before kept them.
    fn begin() -> Self {
        let mut sim = Self {
            state: Memory::new(),
            index: 0,
            drawn: 0,
            sent: Vec::new(),
            volumes: Default::default(),
            revealed: BTreeSet::new(),
        };
        let first = sim.command(Role::Node, "1", super::commands::initialize(1));
        assert_eq!(sim.apply(&first), Reply::Initialized);
        let level = FeatureLevel::DESK;
        let raise = sim.command(Role::Node, "1", Action::RaiseFeatureLevel(RaiseFeatureLevel { level }));
        assert_eq!(sim.apply(&raise), Reply::FeatureLevel(level));
        for volume in 0..VOLUMES.len() {
            let escrow = sim.draw(volume);
            let key_id = escrow.key_id;
            let command = sim.command(Role::Agent, MACHINE, Action::Escrow(escrow));
            assert!(matches!(sim.apply(&command), Reply::Escrowed(_)));
            sim.volumes[volume].protectors = vec![key_id];
        }
        sim
    }

    fn draw(&mut self, volume: usize) -> Escrow {
        self.drawn += 1;
        let secret = u8::try_from(self.drawn % 250).unwrap();
        Escrow {
            key_id: KeyId(Uuid::from_u128(self.drawn)),
            key_id_given: true,
            machine: machine(),
            volume: VOLUMES[volume].parse().unwrap(),
            kind: SecretKind::BitlockerPassword,
            sealed: Sealed { key_version: 1, nonce: [secret; 12], ciphertext: vec![secret; 40] },
            sealed_package: None,
            fingerprint: Fingerprint([secret; 32]),
            user: None,
        }
    }

    fn command(&mut self, role: Role, name: &str, action: Action) -> Command {
        self.drawn += 1;
        Command {
            request: RequestId(Uuid::from_u128(self.drawn)),
            at: Timestamp(u64::try_from(self.drawn).unwrap() * 1_000),
            by: Identity::new("acme".parse().unwrap(), role, name).unwrap(),
            source: Source { node: 1, address: String::new() },
            action,
        }
    }

    fn apply(&mut self, command: &Command) -> Reply {
        self.index += 1;
        let reply = apply(&mut self.state, LogPosition { term: 1, index: self.index }, command).unwrap();
        if let Reply::Revealed(shown) = &reply {
            self.revealed.insert(shown.key_id);
        }
        reply
    }

    /// Sends a request of the device; the answer, if it comes.
    fn send(&mut self, action: Action, delivery: Delivery) -> Option<Reply> {
        let command = self.command(Role::Agent, MACHINE, action);
        self.sent.push(command.clone());
        let reply = (delivery != Delivery::Delayed).then(|| self.apply(&command))?;
        (delivery == Delivery::Answered).then_some(reply)
    }

    fn step(&mut self, event: &Event) {
        match *event {
            Event::Escrow(volume, delivery) => {
                let escrow = self.draw(volume);
                let key_id = escrow.key_id;
                if let Some(reply) = self.send(Action::EscrowPending(escrow), delivery) {
                    assert!(matches!(reply, Reply::Escrowed(_)), "{reply:?}");
                    self.volumes[volume].ready = Some(key_id);
                }
            }
            Event::Add(volume) => {
                let volume = &mut self.volumes[volume];
                volume.protectors.extend(volume.ready.take());
            }
            Event::Remove(volume) => {
                let volume = &mut self.volumes[volume];
                volume.protectors.drain(..volume.protectors.len() - 1);
            }
            Event::Confirm(volume, delivery) => self.confirm(volume, delivery),
            Event::Crash => self.volumes.iter_mut().for_each(|volume| volume.ready = None),
            Event::Reveal(choice) => {
                let keys: Vec<KeyRecord> = self.state.all().unwrap();
                let key_id = keys[choice % keys.len()].id;
                let reveal = Reveal { key_id, user: None, reason: "lost PIN".to_owned() };
                let command = self.command(Role::HelpdeskAdvanced, "desk", Action::Reveal(reveal));
                assert!(matches!(self.apply(&command), Reply::Revealed(_)), "every key can be shown");
            }
            Event::Deliver(choice) => {
                if !self.sent.is_empty() {
                    let command = self.sent[choice % self.sent.len()].clone();
                    self.apply(&command);
                }
            }
        }
    }

    fn confirm(&mut self, volume: usize, delivery: Delivery) {
        let [key_id] = self.volumes[volume].protectors[..] else { return };
        match self.send(Action::ConfirmKey(ConfirmKey { machine: machine(), key_id }), delivery) {
            Some(Reply::KeyConfirmed(confirmed)) => {
                assert_eq!(confirmed.key_id, key_id);
                self.volumes[volume].confirmed = Some(key_id);
            }
            Some(reply) => panic!("the key in use is confirmed, not {reply:?}"),
            None => {}
        }
    }

    fn key(&self, id: KeyId) -> KeyRecord {
        lookup::key(&self.state, id).unwrap().expect("kept")
    }

    fn machine(&self) -> MachineRecord {
        lookup::machine(&self.state, &machine()).unwrap().expect("kept")
    }

    /// What must hold after every event.
    fn check(&self, ever: &mut Vec<KeyRecord>) {
        for old in ever.iter() {
            let new = self.key(old.id);
            assert_eq!(
                KeyRecord { state: old.state, ..new },
                *old,
                "nothing is overwritten, nothing is lost"
            );
        }
        *ever = self.state.all().unwrap();
        let found =
            lookup::find(&self.state, &Query { machine: Some(machine()), ..Query::default() }).unwrap();
        let owed = self.machine().rotation_owed_since;
        for volume in &self.volumes {
            for id in &volume.protectors {
                let key = self.key(*id);
                assert!(found.truncated || found.keys.iter().any(|found| found.key == key), "it is found");
                assert!(
                    owed.is_some() || !self.revealed.contains(id),
                    "a key in use was seen and owes nothing"
                );
            }
            if let [only] = volume.protectors[..]
                && volume.confirmed == Some(only)
            {
                let state = self.key(only).state;
                let current = matches!(state, KeyState::Active | KeyState::Disclosed);
                assert!(current, "the confirmed key in use is called {state}");
            }
        }
        for volume in VOLUMES {
            let pending =
                ever.iter().filter(|key| key.state == KeyState::Pending && key.volume.as_str() == volume);
            assert!(pending.count() <= PENDING_PER_VOLUME_MAX);
        }
    }
}

fn machine() -> MachineId {
    MACHINE.parse().unwrap()
}

proptest! {
    #[test]
    fn at_no_point_is_a_key_in_use_that_is_not_kept(events in proptest::collection::vec(event(), 0..80)) {
        let mut sim = Simulation::begin();
        let mut ever = Vec::new();
        for event in &events {
            sim.step(event);
            sim.check(&mut ever);
        }

        // However it came here, one undisturbed rotation of each volume settles everything.
        for volume in 0..VOLUMES.len() {
            for event in [
                Event::Crash,
                Event::Escrow(volume, Delivery::Answered),
                Event::Add(volume),
                Event::Remove(volume),
                Event::Confirm(volume, Delivery::Answered),
            ] {
                sim.step(&event);
                sim.check(&mut ever);
            }
        }
        prop_assert_eq!(sim.machine().rotation_owed_since, None);
        for volume in &sim.volumes {
            prop_assert_eq!(sim.key(volume.protectors[0]).state, KeyState::Active);
        }
        // And nothing that arrives late unsettles it.
        for command in sim.sent.clone() {
            let reply = sim.apply(&command);
            let replaced = matches!(&reply, Reply::Refused(Refusal::Conflict(why)) if why.contains("was replaced"));
            let expected = matches!(reply, Reply::Escrowed(_) | Reply::KeyConfirmed(_)) || replaced;
            prop_assert!(expected, "{:?}", reply);
            if !matches!(command.action, Action::EscrowPending(_)) {
                prop_assert_eq!(sim.machine().rotation_owed_since, None);
            }
        }
        sim.check(&mut ever);
        for volume in &sim.volumes {
            prop_assert_eq!(sim.key(volume.protectors[0]).state, KeyState::Active);
        }
    }
}

//! What must hold for any sequence of commands.

mod alone;
mod bulk;
mod commands;
mod compliance;
mod rotation;

use proptest::prelude::*;

use super::apply::apply;
use super::audit::{ChainHead, verify};
use super::command::{Action, Command, Escrow, EscrowAnswer, ImportOutcome, Reply, UploadOutcome};
use super::compliance::{ComplianceChange, CompliancePolicyRecord, ComplianceRecord, Exemption, Merged};
use super::features::FeatureLevel;
use super::ids::{KeyId, Role};
use super::lookup;
use super::memory::Memory;
use super::policy::{self, Operation};
use super::records::{
    Approval, AuditEvent, AuditRecord, ClusterRecord, DenialTally, DepartedNode, FeatureLevelRecord,
    KeyHistory, KeyRecord, KeyState, KeyringRecord, LogPosition, MachineRecord, NodeRecord, PolicyRecord,
    ReconciledEntry, ResealRecord, RevealTally, UsedApproval,
};
use super::rows::{Heads, MachineKey, RequestRow, RequestSlot, UserMachine};
use super::state::{Row, Table};
use commands::commands;

const TABLES: [Table; 27] = [
    Table::Cluster,
    Table::Heads,
    Table::Keyring,
    Table::Node,
    Table::Machine,
    Table::Key,
    Table::MachineKey,
    Table::UserMachine,
    Table::Audit,
    Table::Request,
    Table::RequestSlot,
    Table::DepartedNode,
    Table::FeatureLevel,
    Table::Policy,
    Table::RevealTally,
    Table::DenialTally,
    Table::UsedApproval,
    Table::Approval,
    Table::Reconciled,
    Table::Reseal,
    Table::KeyHistory,
    Table::Compliance,
    Table::ComplianceChange,
    Table::Exemption,
    Table::CompliancePolicy,
    Table::Inventory,
    Table::ExemptionTally,
];

/// Applies `commands` as the entries from `index` on.
fn play(state: &mut Memory, index: u64, commands: &[Command]) -> Vec<Reply> {
    (index..)
        .zip(commands)
        .map(|(index, command)| apply(state, LogPosition { term: 1, index }, command).unwrap())
        .collect()
}

fn counts(state: &Memory) -> Vec<usize> {
    TABLES.map(|table| state.count(table)).to_vec()
}

/// Whether an action may take a key from one state to another.
fn may_follow(old: KeyState, new: KeyState, action: &Action, key: KeyId) -> bool {
    use KeyState::{Active, Disclosed, Pending, Retired};
    match (old, new) {
        (old, new) if old == new => true,
        (Active, Disclosed) => match action {
            Action::Reveal(reveal) => reveal.key_id == key,
            Action::Reconcile(reconcile) => {
                reconcile.entry.what.reveal().is_some_and(|reveal| reveal.was_shown() && reveal.key_id == key)
            }
            _ => false,
        },
        (Pending | Retired, Active | Disclosed) => {
            matches!(action, Action::ConfirmKey(confirm) if confirm.key_id == key)
        }
        (Pending | Active | Disclosed, Retired) => match action {
            Action::ConfirmKey(confirm) => confirm.key_id != key,
            Action::EscrowPending(_) => old == Pending,
            _ => false,
        },
        _ => false,
    }
}

/// A reply but for the mark that a key or a report had been kept before.
fn settled(mut reply: Reply) -> Reply {
    match &mut reply {
        Reply::Escrowed(kept) => (kept.already_escrowed, kept.keys_left) = (true, None),
        Reply::EscrowedMany(answers) => {
            for answer in answers {
                if let EscrowAnswer::Escrowed(kept) = answer {
                    (kept.already_escrowed, kept.keys_left) = (true, None);
                }
            }
        }
        Reply::ComplianceNoted(outcomes) => {
            for outcome in outcomes {
                if let UploadOutcome::Taken { merged, .. } = outcome
                    && *merged != Merged::Changed
                {
                    *merged = Merged::Repeated;
                }
            }
        }
        Reply::MachinesImported(outcomes) => {
            for outcome in outcomes {
                if *outcome == ImportOutcome::Noted {
                    *outcome = ImportOutcome::KnownBefore;
                }
            }
        }
        _ => {}
    }
    reply
}

/// Every escrow that a command asks for, with what became of it; nothing if the whole is refused.
fn escrows<'a>(command: &'a Command, reply: &Reply) -> Vec<(&'a Escrow, EscrowAnswer)> {
    match (&command.action, reply) {
        (Action::Escrow(asked) | Action::EscrowPending(asked), Reply::Escrowed(kept)) => {
            vec![(asked, EscrowAnswer::Escrowed(kept.clone()))]
        }
        (Action::Escrow(asked) | Action::EscrowPending(asked), Reply::OldDataKey { current }) => {
            vec![(asked, EscrowAnswer::OldDataKey { current: *current })]
        }
        (Action::EscrowMany(asked), Reply::EscrowedMany(answers)) => {
            assert_eq!(asked.len(), answers.len());
            asked.iter().map(|one| &one.escrow).zip(answers.iter().cloned()).collect()
        }
        _ => Vec::new(),
    }
}

/// Rows of one type, there and back through the encoding of the store.
fn survive_encoding<R: Row>(state: &Memory) -> bool {
    let config = bincode::config::standard();
    state.all::<R>().unwrap().iter().all(|row| {
        let bytes = bincode::serde::encode_to_vec(row, config).unwrap();
        let (again, length): (R, usize) = bincode::serde::decode_from_slice(&bytes, config).unwrap();
        length == bytes.len() && bincode::serde::encode_to_vec(&again, config).unwrap() == bytes
    })
}

proptest! {
    #[test]
    fn the_same_entries_make_the_same_state_wherever_a_replica_begins(
        commands in commands(), cut in any::<prop::sample::Index>(),
    ) {
        let mut whole = Memory::new();
        let replies = play(&mut whole, 1, &commands);

        let cut = cut.index(commands.len());
        let mut begun = Memory::new();
        let mut in_parts = play(&mut begun, 1, &commands[..cut]);
        let mut resumed = begun.clone();
        in_parts.extend(play(&mut resumed, 1 + cut as u64, &commands[cut..]));

        prop_assert_eq!(&resumed, &whole);
        prop_assert_eq!(resumed.dump(), whole.dump());
        prop_assert_eq!(in_parts, replies);
    }

    #[test]
    fn a_command_sent_twice_is_answered_twice_and_done_once(commands in commands()) {
        let mut state = Memory::new();
        for (index, command) in (1..).step_by(2).zip(&commands) {
            let first = play(&mut state, index, std::slice::from_ref(command)).remove(0);
            let (keys, counted) = (state.all::<KeyRecord>().unwrap(), counts(&state));
            let second = play(&mut state, index + 1, std::slice::from_ref(command)).remove(0);
            prop_assert_eq!(counts(&state), counted);
            prop_assert_eq!(state.all::<KeyRecord>().unwrap(), keys);
            // The leader looks how far its own steps have come before it goes on.
            if !matches!(command.action, Action::Reseal(_) | Action::DropDataKeys(_)) {
                prop_assert_eq!(settled(second), settled(first));
            }
        }
    }

    #[test]
    fn a_kept_key_changes_in_nothing_but_its_state_and_its_data_key(commands in commands()) {
        let mut state = Memory::new();
        let mut before: Vec<KeyRecord> = Vec::new();
        for (index, command) in (1..).zip(&commands) {
            let reply = play(&mut state, index, std::slice::from_ref(command)).remove(0);
            for old in before {
                let new = lookup::key(&state, old.id).unwrap().unwrap();
                prop_assert!(may_follow(old.state, new.state, &command.action, old.id), "{:?}", command.action);
                let KeyRecord { sealed, sealed_package, .. } = new.clone();
                if sealed != old.sealed || sealed_package != old.sealed_package {
                    prop_assert!(matches!(reply, Reply::Resealed(_)), "{:?}", reply);
                    let current = lookup::keyring(&state).unwrap().unwrap().current_key_version;
                    prop_assert!(new.is_sealed_under(current) && !old.is_sealed_under(current));
                    prop_assert_eq!(sealed_package.is_some(), old.sealed_package.is_some());
                }
                prop_assert_eq!(&new, &KeyRecord { state: new.state, sealed, sealed_package, ..old });
            }
            before = state.all().unwrap();
        }
    }

    #[test]
    fn an_acknowledged_key_is_found_as_it_was_acknowledged(commands in commands()) {
        let mut state = Memory::new();
        let replies = play(&mut state, 1, &commands);
        let escrows = commands.iter().zip(&replies).flat_map(|(command, reply)| escrows(command, reply));
        for (asked, answer) in escrows {
            let EscrowAnswer::Escrowed(kept) = answer else { continue };
            let key = lookup::key(&state, kept.key_id).unwrap().unwrap();
            prop_assert_eq!(
                (&key.machine, &key.volume, key.kind, key.fingerprint),
                (&asked.machine, &asked.volume, asked.kind, asked.fingerprint)
            );
            prop_assert!(asked.sealed_package.is_none() || key.sealed_package.is_some());
            prop_assert_eq!((key.position, key.escrowed_at), (kept.position, kept.at));

            let query = lookup::Query { machine: Some(asked.machine.clone()), ..Default::default() };
            let found = lookup::find(&state, &query).unwrap();
            prop_assert!(found.keys.iter().any(|found| found.key == key));
            if asked.user.is_some() {
                let query = lookup::Query { user: asked.user.clone(), ..Default::default() };
                let found = lookup::find(&state, &query).unwrap();
                prop_assert!(found.keys.iter().any(|found| found.key == key));
            }
        }
    }

    #[test]
    fn a_new_secret_is_kept_only_under_the_current_data_key(commands in commands()) {
        let mut state = Memory::new();
        for (index, command) in (1..).zip(&commands) {
            let guarded = lookup::feature_level(&state).unwrap() >= FeatureLevel::DEPARTURES;
            let current = lookup::keyring(&state).unwrap().map(|keyring| keyring.current_key_version);
            let before = state.clone();
            let reply = play(&mut state, index, std::slice::from_ref(command)).remove(0);
            let mut new = 0;
            for (asked, answer) in escrows(command, &reply) {
                match answer {
                    EscrowAnswer::Escrowed(kept) if !kept.already_escrowed => {
                        new += 1;
                        prop_assert!(!guarded || Some(asked.sealed.key_version) == current);
                    }
                    EscrowAnswer::OldDataKey { current: told } => {
                        prop_assert!(guarded && Some(told) == current && asked.sealed.key_version < told);
                    }
                    _ => {}
                }
            }
            prop_assert_eq!(state.count(Table::Key), before.count(Table::Key) + new);
            match (&command.action, reply) {
                (Action::Escrow(_) | Action::EscrowPending(_), Reply::OldDataKey { .. }) => {
                    prop_assert_eq!(state.count(Table::Request), before.count(Table::Request));
                }
                (Action::Reseal(step), Reply::OldDataKey { .. }) => {
                    prop_assert!(Some(step.key_version) != current);
                }
                (_, Reply::OldDataKey { .. }) => panic!("{:?} seals no secret", command.action),
                _ => {}
            }
        }
    }

    #[test]
    fn older_data_keys_are_dropped_only_when_no_key_is_sealed_under_them(commands in commands()) {
        let mut state = Memory::new();
        for (index, command) in (1..).zip(&commands) {
            let reply = play(&mut state, index, std::slice::from_ref(command)).remove(0);
            let Some(pass) = lookup::resealing(&state).unwrap() else { continue };
            let current = lookup::keyring(&state).unwrap().unwrap().current_key_version;
            let keys: Vec<KeyRecord> = state.all().unwrap();
            let behind = keys.iter().filter(|key| Some(key.id) <= pass.after || pass.done);
            let old = behind.filter(|key| key.sealed.key_version < pass.key_version).count() as u64;
            prop_assert!(old <= pass.left, "{old} of those looked at are under older data keys, {} known", pass.left);
            if reply == Reply::DataKeysDropped || (pass.dropped && pass.key_version == current) {
                prop_assert!(keys.iter().all(|key| key.is_sealed_under(current)));
            }
        }
    }

    #[test]
    fn a_key_is_shown_only_with_its_record_its_debt_and_the_right_to_it(commands in commands()) {
        let mut state = Memory::new();
        for (index, command) in (1..).zip(&commands) {
            let before = lookup::heads(&state).unwrap();
            let reply = play(&mut state, index, std::slice::from_ref(command)).remove(0);
            let Reply::Revealed(shown) = reply else { continue };
            let Action::Reveal(asked) = &command.action else { panic!("{:?} revealed a key", command.action) };
            prop_assert!(policy::allows(command.by.role, Operation::Recover));
            let key = lookup::key(&state, asked.key_id).unwrap().unwrap();
            let machine = lookup::machine(&state, &key.machine).unwrap().unwrap();
            let history = lookup::history(&state, key.id).unwrap();
            prop_assert!(key.state != KeyState::Active);
            prop_assert!(key.state == KeyState::Disclosed || history.disclosed_at.is_some());
            if history.replaced_by.is_none() {
                prop_assert!(machine.rotation_owed_since.is_some_and(|since| since <= shown.at));
            }
            if command.by.role == Role::Helpdesk {
                prop_assert!(machine.users.contains(asked.user.as_ref().unwrap()));
            }
            if let Some(user) = command.by.user() {
                prop_assert!(machine.users.contains(&user));
            }
            let followed = lookup::policy(&state).unwrap();
            if shown.position.index == index && followed.needs_approval(&machine.id) {
                let record = lookup::audit(&state, shown.audit_sequence - 2, 1).unwrap().remove(0);
                let AuditEvent::ApprovalUsed { granted_by, .. } = record.event else { panic!("unapproved") };
                prop_assert_ne!(granted_by.person(), command.by.person());
            }
            let record = lookup::audit(&state, shown.audit_sequence - 1, 1).unwrap().remove(0);
            prop_assert_eq!((record.by, record.position), (command.by.clone(), shown.position));
            // A new entry shows with a new record, a replay with the old one.
            prop_assert_eq!(shown.position.index == index, shown.audit_sequence > before.audit.sequence);
        }
    }

    #[test]
    fn the_history_never_goes_back_and_its_chain_holds(commands in commands()) {
        let mut state = Memory::new();
        let mut last = Heads::default();
        for (index, command) in (1..).zip(&commands) {
            play(&mut state, index, std::slice::from_ref(command));
            let heads = lookup::heads(&state).unwrap();
            prop_assert!(heads.last_stamp >= last.last_stamp && heads.audit.sequence >= last.audit.sequence);
            last = heads;
        }
        let records: Vec<AuditRecord> = state.all().unwrap();
        prop_assert_eq!(verify(&records, ChainHead::default(), last.audit), Ok(()));
        prop_assert!(records.is_sorted_by_key(|record| (record.at, record.position)));
    }

    #[test]
    fn every_index_row_has_its_record_and_every_record_its_index_rows(commands in commands()) {
        let mut state = Memory::new();
        play(&mut state, 1, &commands);

        let mut keys: Vec<_> = state.all::<KeyRecord>().unwrap();
        keys.sort_by(|a, b| (&a.machine, a.id).cmp(&(&b.machine, b.id)));
        let keys: Vec<_> = keys.into_iter().map(|key| (key.machine, key.id, key.fingerprint)).collect();
        let rows = state.all::<MachineKey>().unwrap();
        prop_assert_eq!(rows.into_iter().map(|r| (r.machine, r.key_id, r.fingerprint)).collect::<Vec<_>>(), keys);

        let machines: Vec<MachineRecord> = state.all().unwrap();
        let users: usize = machines.iter().map(|machine| machine.users.len()).sum();
        prop_assert_eq!(state.count(Table::UserMachine), users);
        for row in state.all::<UserMachine>().unwrap() {
            let machine = lookup::machine(&state, &row.machine).unwrap().unwrap();
            prop_assert!(machine.users.contains(&row.user));
        }

        let requests: Vec<RequestRow> = state.all().unwrap();
        let slots: Vec<RequestSlot> = state.all().unwrap();
        prop_assert_eq!(slots.len(), requests.len());
        prop_assert!(requests.iter().all(|row| slots.iter().any(|slot| slot.request == row.request)));
    }
    #[test]
    fn every_row_survives_the_encoding_of_the_store(commands in commands()) {
        let mut state = Memory::new();
        play(&mut state, 1, &commands);
        prop_assert!(survive_encoding::<ClusterRecord>(&state) && survive_encoding::<Heads>(&state));
        prop_assert!(survive_encoding::<KeyringRecord>(&state) && survive_encoding::<NodeRecord>(&state));
        prop_assert!(survive_encoding::<MachineRecord>(&state) && survive_encoding::<KeyRecord>(&state));
        prop_assert!(survive_encoding::<MachineKey>(&state) && survive_encoding::<UserMachine>(&state));
        prop_assert!(survive_encoding::<AuditRecord>(&state) && survive_encoding::<RequestRow>(&state));
        prop_assert!(survive_encoding::<RequestSlot>(&state) && survive_encoding::<DepartedNode>(&state));
        prop_assert!(survive_encoding::<PolicyRecord>(&state) && survive_encoding::<RevealTally>(&state));
        prop_assert!(survive_encoding::<Approval>(&state) && survive_encoding::<ResealRecord>(&state));
        prop_assert!(survive_encoding::<ReconciledEntry>(&state) && survive_encoding::<KeyHistory>(&state));
        prop_assert!(survive_encoding::<FeatureLevelRecord>(&state));
        prop_assert!(survive_encoding::<ComplianceRecord>(&state) && survive_encoding::<ComplianceChange>(&state));
        prop_assert!(survive_encoding::<Exemption>(&state) && survive_encoding::<CompliancePolicyRecord>(&state));
        prop_assert!(survive_encoding::<FeatureLevelRecord>(&state) && survive_encoding::<DenialTally>(&state));
        prop_assert!(survive_encoding::<UsedApproval>(&state));
    }
}

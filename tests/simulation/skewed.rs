//! For [`Mutation::ApplyByOwnClock`](crate::mutation::Mutation): an entry as a replica would see it that reads its clock.

use openraft::EntryPayload;
use strongroom::escrow::command::Command;
use strongroom::escrow::ids::Timestamp;
use strongroom::store::format;

use crate::types::Entry;

/// The entry, its command given at `now`.
pub fn stamped(entry: &Entry, now: Timestamp) -> Entry {
    let mut entry = entry.clone();
    if let EntryPayload::Normal(commands) = &mut entry.payload {
        for bytes in &mut commands.0 {
            let command: Command = format::decode(bytes).expect("the harness proposed it");
            *bytes = format::encode(&Command { at: now, ..command }).into();
        }
    }
    entry
}

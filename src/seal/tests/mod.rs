//! What sealing must hold, by topic.

mod keyring;
mod node_key;
mod resealed;
mod sealed;
mod vectors;

use uuid::Uuid;

use super::{Part, SealContext};
use crate::escrow::ids::{KeyId, MachineId, VolumeId};
use crate::escrow::secrets::SecretKind;
use crate::secret::Secret;

/// A place for a record: what a [`SealContext`] borrows from.
#[derive(Debug, Clone)]
struct Place {
    machine: MachineId,
    volume: VolumeId,
    key_id: KeyId,
    kind: SecretKind,
    part: Part,
}

impl Place {
    fn sample() -> Self {
        Self {
            machine: "PC-0001".parse().unwrap(),
            volume: "C:".parse().unwrap(),
            key_id: KeyId(Uuid::from_bytes([0x22; 16])),
            kind: SecretKind::BitlockerPassword,
            part: Part::Secret,
        }
    }

    fn context(&self) -> SealContext<'_> {
        let Self { machine, volume, key_id, kind, part } = self;
        SealContext { machine, volume, key_id: *key_id, kind: *kind, part: *part }
    }
}

fn secret(text: &str) -> Secret {
    Secret::from(text.to_owned())
}

/// Whether any 8 bytes of `needle` appear in `text`, as they are, in hexadecimal or as a printed list of numbers.
fn shows(text: &str, needle: &[u8]) -> bool {
    let text = text.to_lowercase();
    needle.windows(8).any(|part| {
        let list = format!("{part:?}");
        text.contains(&data_encoding::HEXLOWER.encode(part))
            || text.contains(list.trim_matches(['[', ']']))
            || std::str::from_utf8(part).is_ok_and(|part| text.contains(&part.to_lowercase()))
    })
}

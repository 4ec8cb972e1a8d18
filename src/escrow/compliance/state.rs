//! The state of a machine: the part of what it says that reports judge, and whose changes are kept as history. How far a
//! conversion has come, a label or a version is not part of it.

use serde::{Deserialize, Serialize};

use super::codes::Code;
use super::facts::{PROTECTORS_MAX, REASONS_MAX, RECOVERY_KEYS_MAX};
use super::words::{Cipher, Conversion, Enforcement, Protection, Protector, VolumeKind};
use crate::escrow::digest::Canonical;
use crate::escrow::ids::{KeyId, VOLUME_ID_MAX_BYTES, VolumeId};

/// Names what is hashed and the version of its layout.
const STATE_LABEL: &str = "strongroom compliance state v1";

/// Most bytes that [`MachineState::weight`] counts for a volume.
pub const VOLUME_STATE_MAX_BYTES: usize =
    VOLUME_ID_MAX_BYTES + WORDS_BYTES + PROTECTORS_MAX + REASONS_MAX + RECOVERY_KEYS_MAX * KEY_ID_BYTES;
/// What the words of a state, and the lengths of its lists, come to.
const WORDS_BYTES: usize = 16;
const KEY_ID_BYTES: usize = 16;

/// How a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// Whether its own management's policy is carried out.
    pub enforcement: Enforcement,
    /// The number of what went wrong on it, if something did.
    pub error: Option<u32>,
    /// Its volumes, in the order of their ids.
    pub volumes: Vec<VolumeState>,
}

/// How a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeState {
    /// The volume.
    pub volume: VolumeId,
    /// What it is for.
    pub kind: VolumeKind,
    /// Whether its key is guarded.
    pub protection: Protection,
    /// How far it is encrypted.
    pub conversion: Conversion,
    /// With what.
    pub method: Cipher,
    /// What opens it.
    pub protectors: Vec<Protector>,
    /// Whether the operating system opens it by itself.
    pub auto_unlock: bool,
    /// The ids of the recovery protectors that are on it, if the device tells.
    pub recovery_keys: Option<Vec<KeyId>>,
    /// Why it does not comply by the device's own judgement.
    pub reasons: Vec<Code>,
}

impl MachineState {
    /// A number that stands for this state among others of the same machine: equal states have equal ones, and different
    /// states different ones, but for one pair in 2^64. Which of two states counts that a device tells of one time is
    /// decided by it, so that the order of arrival does not matter.
    pub fn rank(&self) -> u64 {
        let Self { enforcement, error, volumes } = self;
        let canonical = Canonical::new(STATE_LABEL)
            .text(enforcement.as_str())
            .optional_text(error.map(|code| code.to_string()).as_deref())
            .number(volumes.len() as u64);
        let hash = volumes.iter().fold(canonical, |canonical, volume| volume.hashed_into(canonical)).sha256();
        let mut first = [0; 8];
        first.copy_from_slice(&hash[..8]);
        u64::from_be_bytes(first)
    }

    /// About how many bytes it takes, by a count that never changes: all nodes must drop the same of a history.
    pub fn weight(&self) -> u32 {
        let volumes = self.volumes.iter().map(VolumeState::weight).sum::<usize>();
        u32::try_from(WORDS_BYTES + volumes).unwrap_or(u32::MAX)
    }
}

impl VolumeState {
    fn weight(&self) -> usize {
        let keys = self.recovery_keys.as_ref().map_or(0, Vec::len);
        let lists = self.protectors.len() + self.reasons.len() + keys * KEY_ID_BYTES;
        self.volume.as_str().len() + WORDS_BYTES + lists
    }

    /// Whether there is encrypted data on it, or soon will be: from then on somebody may need its key.
    pub fn is_encrypted(&self) -> bool {
        match self.conversion {
            Conversion::Encrypted
            | Conversion::Encrypting
            | Conversion::Decrypting
            | Conversion::EncryptionPaused
            | Conversion::DecryptionPaused => true,
            Conversion::Decrypted | Conversion::Unknown => false,
        }
    }

    pub(super) fn hashed_into(&self, canonical: Canonical) -> Canonical {
        let Self {
            volume,
            kind,
            protection,
            conversion,
            method,
            protectors,
            auto_unlock,
            recovery_keys,
            reasons,
        } = self;
        let mut canonical = canonical
            .text(volume.as_str())
            .text(kind.as_str())
            .text(protection.as_str())
            .text(conversion.as_str())
            .text(method.as_str())
            .number(u64::from(*auto_unlock))
            .number(protectors.len() as u64);
        for protector in protectors {
            canonical = canonical.text(protector.as_str());
        }
        canonical = match recovery_keys {
            None => canonical.number(0),
            Some(keys) => {
                let counted = canonical.number(1).number(keys.len() as u64);
                keys.iter().fold(counted, |canonical, key| canonical.bytes(key.0.as_bytes()))
            }
        };
        canonical = canonical.number(reasons.len() as u64);
        reasons.iter().fold(canonical, |canonical, code| canonical.number(code.number().into()))
    }
}

//! What a device says of itself and its volumes: one report, which is also the JSON document of `compliance put` and
//! what is kept of a machine.
//!
//! Lists whose order means nothing have one order here ([`MachineReport::checked`]), so that a device that lists its
//! volumes in another order says nothing new.

use serde::{Deserialize, Serialize};

use super::codes::Code;
use super::state::{MachineState, VolumeState};
use super::words::{
    Cipher, Conversion, DriveRule, Enforcement, MachineType, Protection, Protector, VolumeKind,
};
use crate::escrow::digest::Canonical;
use crate::escrow::ids::{Invalid, KeyId, MachineId, Timestamp, UserName, VolumeId, is_plain};
use crate::escrow::records::USERS_PER_MACHINE_MAX;

/// Longest free text of a report, in bytes: a domain, a model, a label. SMBIOS names have at most 64 characters in
/// practice.
pub const TEXT_MAX_BYTES: usize = 128;
/// Longest text of an error, in bytes.
pub const ERROR_TEXT_MAX_BYTES: usize = 512;
/// Most volumes of a machine.
pub const VOLUMES_MAX: usize = 64;
/// Most users that one report names.
pub const USERS_MAX: usize = 16;
/// Most protectors of a volume in a report; of each type one is kept.
pub const PROTECTORS_MAX: usize = 32;
/// Most reasons of a volume in a report; each is kept once.
pub const REASONS_MAX: usize = 32;
/// Most recovery protectors of a volume.
pub const RECOVERY_KEYS_MAX: usize = 16;

const _: () = assert!(USERS_MAX <= USERS_PER_MACHINE_MAX);

/// Names what is hashed and the version of its layout.
const FACTS_LABEL: &str = "strongroom compliance facts v1";

/// What a device says of itself at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineReport {
    /// The machine.
    pub machine: MachineId,
    /// When, by the device's clock.
    #[serde(with = "time_text")]
    pub at: Timestamp,
    /// The domain it belongs to; empty if none is known, as with every text here.
    #[serde(default)]
    pub domain: String,
    /// Its name, as its users know it.
    #[serde(default)]
    pub name: String,
    /// Who made it.
    #[serde(default)]
    pub make: String,
    /// Which model it is.
    #[serde(default)]
    pub model: String,
    /// What sort of machine it is.
    #[serde(rename = "type", default = "unknown_type")]
    pub machine_type: MachineType,
    /// Its operating system and the version of it.
    #[serde(default)]
    pub os: String,
    /// The version of the agent that reports.
    #[serde(default)]
    pub agent: String,
    /// Its users, the one seen last at the end.
    #[serde(default)]
    pub users: Vec<UserName>,
    /// What the device's own management wants of it.
    pub policy: DevicePolicy,
    /// What went wrong on the device, if something did.
    #[serde(default)]
    pub error: Option<DeviceError>,
    /// Its volumes, each once.
    pub volumes: Vec<VolumeReport>,
}

/// What the device's own management wants of it, as the device says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevicePolicy {
    /// Whether it is carried out.
    pub enforcement: Enforcement,
    /// Which cipher it asks for.
    #[serde(default)]
    pub cipher: Option<Cipher>,
    /// Of the operating system's drive.
    #[serde(default = "not_configured")]
    pub os: DriveRule,
    /// Which protector of the operating system's drive.
    #[serde(default)]
    pub os_protector: Option<Protector>,
    /// Of other built-in drives.
    #[serde(default = "not_configured")]
    pub fixed: DriveRule,
    /// Of drives that can be taken away.
    #[serde(default = "not_configured")]
    pub removable: DriveRule,
}

/// What went wrong on a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceError {
    /// A number of the device's own: an HRESULT, an exit code.
    pub code: u32,
    /// In words.
    #[serde(default)]
    pub text: String,
}

/// What a device says of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeReport {
    /// The volume, by the id its keys are escrowed under.
    pub volume: VolumeId,
    /// What it is for.
    pub kind: VolumeKind,
    /// Its label.
    #[serde(default)]
    pub label: String,
    /// Whether its key is guarded.
    pub protection: Protection,
    /// How far it is encrypted.
    pub conversion: Conversion,
    /// The same in percent, if known.
    #[serde(default)]
    pub percent: Option<Percent>,
    /// With what.
    #[serde(default = "unknown_cipher")]
    pub method: Cipher,
    /// What opens it.
    #[serde(default)]
    pub protectors: Vec<Protector>,
    /// Whether the operating system opens it by itself.
    #[serde(default)]
    pub auto_unlock: bool,
    /// The ids of the recovery protectors that are on it now: absent if the device cannot tell, empty if there are none.
    #[serde(default)]
    pub recovery_keys: Option<Vec<KeyId>>,
    /// Why it does not comply by the device's own judgement.
    #[serde(default)]
    pub reasons: Vec<Code>,
    /// When the device last looked, if that was before the report, as of a drive that is not plugged in.
    #[serde(default, with = "optional_time_text")]
    pub seen_at: Option<Timestamp>,
}

/// A part of a hundred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Percent(u8);

impl Percent {
    /// The number, 0 to 100.
    pub fn number(self) -> u8 {
        self.0
    }
}

impl TryFrom<u64> for Percent {
    type Error = Invalid;
    fn try_from(number: u64) -> Result<Self, Invalid> {
        let percent = u8::try_from(number).ok().filter(|percent| *percent <= 100).map(Self);
        percent.ok_or_else(|| Invalid::new("percent", format!("0 to 100, not {number}")))
    }
}

impl From<Percent> for u64 {
    fn from(percent: Percent) -> Self {
        percent.0.into()
    }
}

impl MachineReport {
    /// The report, checked, and with lists in their one order. Users stay as they were seen.
    ///
    /// # Errors
    /// As [`MachineReport::check`].
    pub fn checked(mut self) -> Result<Self, Invalid> {
        self.check()?;
        for volume in &mut self.volumes {
            sort(&mut volume.protectors);
            sort(&mut volume.reasons);
            if let Some(keys) = &mut volume.recovery_keys {
                sort(keys);
            }
        }
        self.volumes.sort_by(|one, other| one.volume.cmp(&other.volume));
        Ok(self)
    }

    /// Checks what a type cannot say.
    ///
    /// # Errors
    /// [`Invalid`] with the path of the field that is wrong.
    pub fn check(&self) -> Result<(), Invalid> {
        let texts = [
            ("domain", &self.domain),
            ("name", &self.name),
            ("make", &self.make),
            ("model", &self.model),
            ("os", &self.os),
            ("agent", &self.agent),
        ];
        for (field, text) in texts {
            check_text(field, text, TEXT_MAX_BYTES)?;
        }
        check_length("users", &self.users, USERS_MAX)?;
        if let Some(error) = &self.error {
            check_text("error.text", &error.text, ERROR_TEXT_MAX_BYTES)?;
        }
        check_length("volumes", &self.volumes, VOLUMES_MAX)?;
        for (index, volume) in self.volumes.iter().enumerate() {
            volume.check(&format!("volumes[{index}]"), self.at)?;
            // Two entries of one volume contradict each other.
            if self.volumes[..index].iter().any(|other| other.volume == volume.volume) {
                let expected = format!("each volume once, not {} again", volume.volume);
                return Err(Invalid::new(format!("volumes[{index}].volume"), expected));
            }
        }
        Ok(())
    }

    /// The part of it whose changes are kept.
    pub fn state(&self) -> MachineState {
        MachineState {
            enforcement: self.policy.enforcement,
            error: self.error.as_ref().map(|error| error.code),
            volumes: self.volumes.iter().map(VolumeReport::state).collect(),
        }
    }

    /// A hash of all it says but for when: equal for two reports exactly if the later one says nothing new.
    pub fn digest(&self) -> [u8; 32] {
        let Self {
            machine,
            at: _,
            domain,
            name,
            make,
            model,
            machine_type,
            os,
            agent,
            users,
            policy,
            error,
            volumes,
        } = self;
        let mut canonical = Canonical::new(FACTS_LABEL).text(machine.as_str());
        for text in [domain, name, make, model, machine_type.as_str(), os, agent] {
            canonical = canonical.text(text);
        }
        canonical = canonical.number(users.len() as u64);
        for user in users {
            canonical = canonical.text(&user.to_string());
        }
        canonical = policy.hashed_into(canonical);
        canonical = match error {
            None => canonical.number(0),
            Some(error) => canonical.number(1).number(error.code.into()).text(&error.text),
        };
        canonical = canonical.number(volumes.len() as u64);
        for volume in volumes {
            canonical = volume.hashed_into(canonical);
        }
        canonical.sha256()
    }
}

impl DevicePolicy {
    fn hashed_into(&self, canonical: Canonical) -> Canonical {
        let Self { enforcement, cipher, os, os_protector, fixed, removable } = self;
        canonical
            .text(enforcement.as_str())
            .optional_text(cipher.map(Cipher::as_str))
            .text(os.as_str())
            .optional_text(os_protector.map(Protector::as_str))
            .text(fixed.as_str())
            .text(removable.as_str())
    }
}

impl VolumeReport {
    /// The part of it whose changes are kept.
    pub fn state(&self) -> VolumeState {
        VolumeState {
            volume: self.volume.clone(),
            kind: self.kind,
            protection: self.protection,
            conversion: self.conversion,
            method: self.method,
            protectors: self.protectors.clone(),
            auto_unlock: self.auto_unlock,
            recovery_keys: self.recovery_keys.clone(),
            reasons: self.reasons.clone(),
        }
    }

    fn check(&self, path: &str, reported_at: Timestamp) -> Result<(), Invalid> {
        check_text(&format!("{path}.label"), &self.label, TEXT_MAX_BYTES)?;
        check_length(&format!("{path}.protectors"), &self.protectors, PROTECTORS_MAX)?;
        check_length(&format!("{path}.reasons"), &self.reasons, REASONS_MAX)?;
        if let Some(keys) = &self.recovery_keys {
            check_length(&format!("{path}.recovery_keys"), keys, RECOVERY_KEYS_MAX)?;
        }
        if self.seen_at.is_some_and(|seen| seen > reported_at) {
            return Err(Invalid::new(format!("{path}.seen_at"), "no later than the report's own time, at"));
        }
        Ok(())
    }

    fn hashed_into(&self, canonical: Canonical) -> Canonical {
        // All that is state is hashed as that.
        let canonical = self.state().hashed_into(canonical).text(&self.label);
        let canonical = canonical.optional_text(self.percent.map(|percent| percent.0.to_string()).as_deref());
        canonical.optional_text(self.seen_at.map(|seen| seen.0.to_string()).as_deref())
    }
}

fn sort<T: Ord>(list: &mut Vec<T>) {
    list.sort_unstable();
    list.dedup();
}

pub(in crate::escrow) fn check_text(field: &str, text: &str, max: usize) -> Result<(), Invalid> {
    if text.len() <= max && is_plain(text) {
        return Ok(());
    }
    let expected = format!("at most {max} bytes without control or invisible characters");
    Err(Invalid::new(field, expected))
}

pub(in crate::escrow) fn check_length<T>(field: &str, list: &[T], max: usize) -> Result<(), Invalid> {
    if list.len() <= max {
        return Ok(());
    }
    Err(Invalid::new(field, format!("at most {max} entries, not {}", list.len())))
}

fn unknown_type() -> MachineType {
    MachineType::Unknown
}

fn not_configured() -> DriveRule {
    DriveRule::NotConfigured
}

fn unknown_cipher() -> Cipher {
    Cipher::Unknown
}

/// A time as RFC 3339 in documents, as a number in rows.
mod time_text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::escrow::ids::Timestamp;

    pub(super) fn serialize<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(at) } else { at.serialize(serializer) }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            Timestamp::deserialize(deserializer)
        }
    }
}

/// As [`time_text`], of a time that may be absent.
mod optional_time_text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::escrow::ids::Timestamp;

    /// One time, as it is written.
    #[derive(Serialize, Deserialize)]
    struct Written(#[serde(with = "super::time_text")] Timestamp);

    pub(super) fn serialize<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
        at.map(Written).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        Ok(Option::<Written>::deserialize(deserializer)?.map(|Written(at)| at))
    }
}

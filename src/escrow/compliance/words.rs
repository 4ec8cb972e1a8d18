//! The words of compliance: what a device may say of its volumes and of the policy it was given. Each has one name, in
//! documents, on the wire and in reports. On disk it is a number, by its place: new words come last.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::escrow::ids::Invalid;

/// Declares an enum of words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $field:literal: $($(#[$word_doc:meta])* $word:ident = $text:literal,)+) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$word_doc])* $word,)+
        }

        impl $name {
            /// Every word.
            pub const ALL: &'static [Self] = &[$(Self::$word),+];

            /// The word as it stands in documents and reports.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$word => $text,)+
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.serialize_str(self.as_str())
                } else {
                    serializer.serialize_u8(*self as u8)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let word: Result<Self, Invalid> = String::deserialize(deserializer)?.parse();
                    word.map_err(|error| D::Error::custom(error.expected))
                } else {
                    let place = u8::deserialize(deserializer)?;
                    let word = Self::ALL.get(usize::from(place)).copied();
                    word.ok_or_else(|| D::Error::custom(format!("no {} has the number {place}", $field)))
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> {
                Self::ALL.iter().copied().find(|word| word.as_str() == text).ok_or_else(|| {
                    let words: Vec<&str> = Self::ALL.iter().map(|word| word.as_str()).collect();
                    Invalid::new($field, format!("one of {}", words.join(", ")))
                })
            }
        }
    };
}

words! {
    /// What sort of machine it is.
    MachineType, "type":
    /// Carried about: a laptop or tablet.
    Portable = "portable",
    /// Stays where it is.
    Desktop = "desktop",
    /// A server.
    Server = "server",
    /// A virtual machine.
    Virtual = "virtual",
    /// The device does not say.
    Unknown = "unknown",
}

words! {
    /// Whether the device carries out the encryption policy that its own management gave it.
    Enforcement, "enforcement":
    /// It does.
    Enforced = "enforced",
    /// It does not, or not yet.
    NotEnforced = "not-enforced",
    /// Its own management let it, or its user, off. The cluster's exemptions are another matter.
    Exempt = "exempt",
}

words! {
    /// What the device's own management wants of a kind of drive.
    DriveRule, "policy":
    /// Nothing.
    NotConfigured = "not-configured",
    /// It may be encrypted.
    Allowed = "allowed",
    /// It must be encrypted.
    Required = "required",
    /// It must not be encrypted.
    Forbidden = "forbidden",
}

words! {
    /// What a volume is for.
    VolumeKind, "kind":
    /// Holds the operating system.
    Os = "os",
    /// Built in, for data.
    Fixed = "fixed",
    /// Can be taken away.
    Removable = "removable",
}

words! {
    /// Whether the protectors of a volume guard its key.
    Protection, "protection":
    /// Its key lies open on the disk: it was never protected, or protection is suspended.
    Off = "off",
    /// It is guarded.
    On = "on",
    /// The device cannot say, as of a volume that is locked.
    Unknown = "unknown",
}

words! {
    /// How far a volume is encrypted.
    Conversion, "conversion":
    /// Not at all.
    Decrypted = "decrypted",
    /// Wholly, or as far as it is used.
    Encrypted = "encrypted",
    /// Being encrypted.
    Encrypting = "encrypting",
    /// Being decrypted.
    Decrypting = "decrypting",
    /// Partly; encrypting it is on hold.
    EncryptionPaused = "encryption-paused",
    /// Partly; decrypting it is on hold.
    DecryptionPaused = "decryption-paused",
    /// The device cannot say, as of a volume that is locked.
    Unknown = "unknown",
}

words! {
    /// What a volume is encrypted with. BitLocker's methods; those of LUKS and FileVault go by the same names.
    Cipher, "cipher":
    /// It is not encrypted.
    None = "none",
    /// AES-CBC with 128 bits.
    Aes128 = "aes-128",
    /// AES-CBC with 128 bits and the Elephant diffuser of Windows 7.
    Aes128Diffuser = "aes-128-diffuser",
    /// AES-CBC with 256 bits.
    Aes256 = "aes-256",
    /// AES-CBC with 256 bits and the Elephant diffuser of Windows 7.
    Aes256Diffuser = "aes-256-diffuser",
    /// XTS-AES with 128 bits (a key of 256 bits for dm-crypt).
    XtsAes128 = "xts-aes-128",
    /// XTS-AES with 256 bits (a key of 512 bits for dm-crypt).
    XtsAes256 = "xts-aes-256",
    /// The drive encrypts by itself.
    Hardware = "hardware",
    /// Another one.
    Other = "other",
    /// The device cannot say.
    Unknown = "unknown",
}

impl Cipher {
    /// The ciphers that can be asked for at least, the weakest first.
    ///
    /// Any XTS stands above any CBC: an attacker who can write to the disk changes chosen bits under CBC. MBAM's codes 15
    /// and 16 rank them so as well.
    pub const RANKED: [Self; 6] = [
        Self::Aes128,
        Self::Aes128Diffuser,
        Self::Aes256,
        Self::Aes256Diffuser,
        Self::XtsAes128,
        Self::XtsAes256,
    ];

    /// Its place in [`Cipher::RANKED`]. Absent for what cannot be compared: nobody outside the drive knows what a drive
    /// does by itself.
    pub fn rank(self) -> Option<usize> {
        Self::RANKED.iter().position(|ranked| *ranked == self)
    }

    /// Whether it is known to be as strong as `minimum`.
    pub fn reaches(self, minimum: Self) -> bool {
        self.rank().is_some_and(|rank| Some(rank) >= minimum.rank())
    }
}

words! {
    /// What opens a volume.
    Protector, "protector":
    /// The TPM alone.
    Tpm = "tpm",
    /// The TPM with a PIN.
    TpmPin = "tpm-pin",
    /// The TPM with a key on a medium.
    TpmStartupKey = "tpm-startup-key",
    /// The TPM with a PIN and a key on a medium.
    TpmPinStartupKey = "tpm-pin-startup-key",
    /// The TPM with a key from the network.
    NetworkUnlock = "network-unlock",
    /// A key on a medium, or a key file.
    StartupKey = "startup-key",
    /// A password or passphrase of a user.
    Password = "password",
    /// A recovery password or key, such as is escrowed here.
    RecoveryPassword = "recovery-password",
    /// A certificate, as on a smart card.
    PublicKey = "public-key",
    /// An account or group of the domain.
    Account = "account",
    /// A FIDO2 token.
    Fido2 = "fido2",
    /// Something else.
    Other = "other",
}

words! {
    /// How a machine stands.
    Status, "status":
    /// It is as the policy of compliance wants it.
    Compliant = "compliant",
    /// It is not.
    NonCompliant = "non-compliant",
    /// It need not be, until that is taken back.
    Exempt = "exempt",
    /// It need not be, until a date.
    TemporarilyExempt = "temporarily-exempt",
    /// It is not held to the policy: its own management does not enforce one on it, or its time of grace is not over.
    NotEnforced = "not-enforced",
    /// Too little is known, or it is too old.
    Unknown = "unknown",
}

words! {
    /// What is amiss.
    ReasonKind, "reason":
    /// The machine had not reported.
    NoReport = "no-report",
    /// What the machine said last is too old.
    Stale = "stale",
    /// The device's own management does not enforce a policy.
    NotEnforced = "not-enforced",
    /// The device's own management let it off.
    ExemptByDevice = "exempt-by-device",
    /// The machine reports no volume of the operating system.
    NoOsVolume = "no-os-volume",
    /// A volume that must be encrypted is not, or not wholly.
    NotEncrypted = "not-encrypted",
    /// The device cannot say whether a volume is encrypted.
    StateUnknown = "state-unknown",
    /// A volume's protection is suspended.
    ProtectionOff = "protection-off",
    /// A volume's cipher is weaker than what is wanted, or not known.
    WeakCipher = "weak-cipher",
    /// The operating system's volume has none of the protectors that are wanted.
    ProtectorMissing = "protector-missing",
    /// No key is in escrow that opens a volume.
    RecoveryKeyMissing = "recovery-key-missing",
    /// The device itself reports a reason that counts.
    DeviceReason = "device-reason",
    /// What the machine reported by that time is too long ago, or was too much, to be kept.
    ReportDropped = "report-dropped",
}

words! {
    /// What was found.
    FindingKind, "finding":
    /// A volume is encrypted, and no key that opens it is in escrow.
    RecoveryKeyMissing = "recovery-key-missing",
    /// A key is in escrow as the one in use, and the device says that it is not on its volume.
    RecoveryKeyMismatch = "recovery-key-mismatch",
    /// A key was shown to a person and its device has not replaced it for long.
    RotationOverdue = "rotation-overdue",
    /// The machine was not heard of for long.
    MachineSilent = "machine-silent",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cipher_reaches_what_is_no_stronger_and_nothing_reaches_the_unknown() {
        for (rank, cipher) in Cipher::RANKED.into_iter().enumerate() {
            for (other, minimum) in Cipher::RANKED.into_iter().enumerate() {
                assert_eq!(cipher.reaches(minimum), rank >= other, "{cipher} {minimum}");
            }
        }
        for cipher in [Cipher::None, Cipher::Hardware, Cipher::Other, Cipher::Unknown] {
            assert!(!cipher.reaches(Cipher::Aes128), "{cipher}");
        }
    }

    #[test]
    fn a_word_reads_back_and_another_is_answered_with_those_there_are() {
        for word in Protector::ALL {
            assert_eq!(word.as_str().parse(), Ok(*word));
            assert_eq!(serde_json::to_string(word).unwrap(), format!("{:?}", word.as_str()));
        }
        let error = "TPM".parse::<Protector>().unwrap_err();
        assert_eq!(error.field, "protector");
        assert!(error.expected.starts_with("one of tpm, tpm-pin,"), "{error}");
    }
}

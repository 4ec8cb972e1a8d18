//! MBAM's codes for why a volume does not comply. A device that runs an agent of MBAM's kind reports them; the cluster
//! names them as well, where it finds the same by its own policy.
//!
//! The numbers are Microsoft's ("Determining why a device receives a noncompliance message", MBAM 2.5; the same list
//! stands under Configuration Manager's BitLocker reference). The texts are ours.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::escrow::ids::Invalid;

/// Declares the codes with their texts.
macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $number:literal, $text:literal;)+) => {
        /// Why a volume does not comply.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "u64", into = "u64")]
        #[repr(u8)]
        pub enum Code {
            $($(#[$doc])* $code = $number,)+
        }

        impl Code {
            /// Every code, by number.
            pub const ALL: [Self; CODES] = [$(Self::$code),+];

            /// What it means, in a few words.
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$code => $text,)+
                }
            }
        }
    };
}

/// How many codes there are, from 0 on.
pub const CODES: usize = 17;

codes! {
    /// The cipher is not AES with 256 bits.
    NotAes256 = 0, "the cipher is weaker than AES with 256 bits";
    /// It is not encrypted and should be.
    NotEncrypted = 1, "the volume must be encrypted and is not";
    /// It is encrypted and should not be.
    Encrypted = 2, "the volume must not be encrypted and is";
    /// There is no TPM protector.
    NoTpm = 3, "a TPM protector is wanted and there is none";
    /// There is no TPM protector with a PIN.
    NoTpmPin = 4, "a TPM protector with a PIN is wanted and there is none";
    /// The machine has no TPM.
    MachineWithoutTpm = 5, "a machine without a TPM does not count as compliant";
    /// A TPM protector without a TPM to be seen.
    TpmNotVisible = 6, "there is a TPM protector, but no TPM is to be seen";
    /// There is no password.
    NoPassword = 7, "a password protector is wanted and there is none";
    /// There is a password.
    Password = 8, "a password protector is not wanted and there is one";
    /// It is not unlocked automatically.
    NoAutoUnlock = 9, "automatic unlocking is wanted and is off";
    /// It is unlocked automatically.
    AutoUnlock = 10, "automatic unlocking is not wanted and is on";
    /// Settings contradict each other.
    PolicyConflict = 11, "settings of the device's policy contradict each other";
    /// There is no system partition.
    NoSystemVolume = 12, "the operating system's volume cannot be encrypted without a system partition, and there is none";
    /// Protection is suspended.
    Suspended = 13, "protection is suspended";
    /// It is unlocked by an operating system that lies open.
    AutoUnlockUnsafe = 14, "automatic unlocking is unsafe while the operating system's volume is not encrypted";
    /// Weaker than XTS-AES-128.
    WeakerThanXts128 = 15, "the cipher is weaker than XTS-AES with 128 bits";
    /// Weaker than XTS-AES-256.
    WeakerThanXts256 = 16, "the cipher is weaker than XTS-AES with 256 bits";
}

impl Code {
    /// Its number.
    pub fn number(self) -> u8 {
        self as u8
    }
}

impl TryFrom<u64> for Code {
    type Error = Invalid;
    fn try_from(number: u64) -> Result<Self, Invalid> {
        let place = usize::try_from(number).ok();
        let code = place.and_then(|place| Self::ALL.get(place).copied());
        code.ok_or_else(|| Invalid::new("code", format!("0 to {}, not {number}", CODES - 1)))
    }
}

impl From<Code> for u64 {
    fn from(code: Code) -> Self {
        Self::from(code.number())
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.number(), self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_from_0_to_16_has_a_text_of_its_own() {
        let mut texts: Vec<&str> = Code::ALL.iter().map(|code| code.text()).collect();
        for (number, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(code.number()), number);
            assert_eq!(Code::try_from(number as u64), Ok(code));
            assert!(!code.text().is_empty());
        }
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), CODES);
        let error = Code::try_from(17).unwrap_err();
        assert_eq!(error.to_string(), "code: 0 to 16, not 17");
    }
}

//! Recovery secrets and their formats.

use serde::{Deserialize, Serialize};

/// What kind of secret a recovery key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretKind {
    /// 48 digits in 8 groups of 6.
    BitlockerPassword,
    /// A BitLocker key package, base64.
    BitlockerPackage,
    /// A TPM owner authorisation value, base64.
    TpmOwner,
    /// A systemd recovery key: 64 modhex characters in 8 groups of 8.
    LuksRecovery,
    /// A personal recovery key: 6 groups of 4 of A-Z0-9.
    FilevaultRecovery,
    /// Any text.
    Generic,
}

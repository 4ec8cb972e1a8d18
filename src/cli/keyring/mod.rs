//! `strongroom keyring`: the data keys that seal what is kept.

mod open;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Exit, Failure, Global, Printer};
use crate::proto::KeyringStatus;

#[derive(Debug, Subcommand)]
pub(super) enum KeyringCommand {
    /// Open what the disk of a node holds with the offline identity alone, without any node.
    Open(open::OpenCommand),
    /// Make a new data key, which seals everything from now on; what is kept is sealed under it in the background.
    Rotate,
    /// Show which data key is current, and how many keys are still sealed under older ones.
    Status,
}

impl KeyringCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        match self {
            Self::Open(open) => open.run(printer).await,
            Self::Rotate => {
                let key_version = global.client()?.rotate_keyring().await?;
                printer.result(&json!({ "key_version": key_version }), || {
                    format!(
                        "data key {key_version} seals everything from now on\nwhat is kept is sealed under it in the \
                         background: `strongroom keyring status` says how far that is"
                    )
                })
            }
            Self::Status => {
                let status = global.client()?.status().await?;
                let keyring = status.keyring.ok_or_else(|| {
                    let message = format!("node {} belongs to no cluster", status.answered_by);
                    Failure::new(Exit::NotFound, message)
                })?;
                printer.result(&json_of(&keyring), || text_of(&keyring))
            }
        }
    }
}

/// The keyring as JSON, here and in `status`.
pub(super) fn json_of(keyring: &KeyringStatus) -> Value {
    json!({
        "key_version": keyring.key_version,
        "generation": keyring.generation,
        "keys_under_old_data_keys": keyring.keys_under_old_data_keys,
        "keys_not_resealed": keyring.keys_not_resealed,
        "has_old_data_keys": keyring.has_old_data_keys,
    })
}

/// The keyring as one line, here and in `status`.
pub(super) fn text_of(keyring: &KeyringStatus) -> String {
    let KeyringStatus { key_version, keys_under_old_data_keys, keys_not_resealed, has_old_data_keys, .. } =
        keyring;
    let older = match keys_under_old_data_keys {
        _ if !has_old_data_keys => "the only one".to_owned(),
        None => "keys under older ones are not counted yet".to_owned(),
        Some(0) => "older ones are about to be dropped".to_owned(),
        Some(_) if *keys_not_resealed > 0 => {
            format!("{keys_not_resealed} keys under older ones cannot be sealed anew")
        }
        Some(1) => "1 key is still under an older one".to_owned(),
        Some(keys) => format!("{keys} keys are still under older ones"),
    };
    format!("data key {key_version}: {older}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_sealing_anew_is() {
        let keyring = KeyringStatus { key_version: 3, has_old_data_keys: true, ..KeyringStatus::default() };
        let line = |old, not_resealed| {
            text_of(&KeyringStatus {
                keys_under_old_data_keys: old,
                keys_not_resealed: not_resealed,
                ..keyring
            })
        };
        assert_eq!(line(None, 0), "data key 3: keys under older ones are not counted yet");
        assert_eq!(line(Some(1_000), 0), "data key 3: 1000 keys are still under older ones");
        assert_eq!(line(Some(1), 0), "data key 3: 1 key is still under an older one");
        assert_eq!(line(Some(2), 2), "data key 3: 2 keys under older ones cannot be sealed anew");
        assert_eq!(line(Some(0), 0), "data key 3: older ones are about to be dropped");
        assert_eq!(
            text_of(&KeyringStatus { has_old_data_keys: false, ..keyring }),
            "data key 3: the only one"
        );
    }
}

//! `strongroom escrow`: keep a recovery key.

use std::path::PathBuf;

use clap::Args;

use super::{Exit, Failure, Global, Printer, input, receipt};
use crate::client::Deposit;
use crate::escrow::ids::{KeyId, MachineId, UserName, VolumeId};
use crate::escrow::secrets::{self, SecretKind};

/// Keep a recovery key.
#[derive(Debug, Args)]
pub(super) struct EscrowCommand {
    /// The machine the key belongs to.
    #[arg(long, value_name = "ID")]
    machine: MachineId,
    /// The volume it unlocks: C:, /dev/nvme0n1p2, …
    #[arg(long, value_name = "ID")]
    volume: VolumeId,
    /// bitlocker-password, bitlocker-package, tpm-owner, luks-recovery, filevault-recovery or generic.
    #[arg(long)]
    kind: SecretKind,
    /// The id to keep it under: the protector's GUID for BitLocker. Chosen by the cluster if not given.
    #[arg(long, value_name = "UUID")]
    key_id: Option<KeyId>,
    /// A user of the machine.
    #[arg(long, value_name = r"DOMAIN\NAME")]
    user: Option<UserName>,
    /// The device is about to use it: keep it beside the key in use until `rotation confirm`.
    #[arg(long)]
    pending: bool,
    /// Read the secret from this file instead of standard input.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// A BitLocker key package to keep with it (binary).
    #[arg(long, value_name = "FILE")]
    package_file: Option<PathBuf>,
    /// Also write the receipt to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    receipt_out: Option<PathBuf>,
}

impl EscrowCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let client = global.client()?;
        let receipt_out = self.receipt_out.as_deref().map(receipt::prepare).transpose()?;
        let deposit = self.deposit()?;
        let receipt = client.escrow(&deposit).await?;
        printer.result(&receipt, || receipt::text(&receipt))?;
        if let Some(file) = receipt_out {
            receipt::write(file, &receipt).map_err(|error| {
                let message =
                    format!("receipt_out: the key is kept, but its receipt could not be written: {error}");
                Failure::new(Exit::Failed, message)
            })?;
        }
        Ok(())
    }

    /// Reads and checks everything that can be checked without a node.
    fn deposit(self) -> Result<Deposit, Failure> {
        let package = self.package_file.as_deref().map(input::package).transpose()?;
        if let Some(package) = &package {
            secrets::package(package.expose())?;
        }
        let secret = secrets::canonical(self.kind, &input::secret(self.secret_file.as_deref())?)?;
        let Self { machine, volume, kind, key_id, user, pending, .. } = self;
        Ok(Deposit { machine, volume, kind, key_id, secret, package, user, pending })
    }
}

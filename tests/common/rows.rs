//! Two states, row by row.

use strongroom::escrow::compliance::{
    ComplianceChange, CompliancePolicyRecord, ComplianceRecord, Exemption, HistoryIndex, LastContact,
};
use strongroom::escrow::inventory::InventoryRecord;
use strongroom::escrow::memory::Memory;
use strongroom::escrow::records::*;
use strongroom::escrow::rows::*;
use strongroom::escrow::state::{Row, Rows};

/// How `found`, which counts so many `rows`, differs from `expected`; `None` if every row of every table is the same, none
/// is missing and none too many.
pub fn differ(found: &impl Rows, expected: &Memory, rows: u64) -> Option<String> {
    let mut known = 0;
    macro_rules! compare {
        ($($row:ty),*) => {$(
            let has: Vec<$row> = found.rows(&[], None, usize::MAX).unwrap();
            let should: Vec<$row> = expected.all().unwrap();
            if has != should {
                return Some(format!("{:?}: {has:?}, not {should:?}", <$row>::TABLE));
            }
            known += has.len() as u64;
        )*};
    }
    compare!(ClusterRecord, Heads, KeyringRecord, NodeRecord, DepartedNode, FeatureLevelRecord, PolicyRecord);
    compare!(MachineRecord, UserMachine, LastContact, InventoryRecord);
    compare!(KeyRecord, MachineKey, KeyHistory, Approval, UsedApproval, ReconciledEntry, ResealRecord);
    compare!(AuditRecord, RequestRow, RequestSlot, RevealTally, DenialTally, ExemptionTally);
    compare!(ComplianceRecord, ComplianceChange, HistoryIndex, Exemption, CompliancePolicyRecord);
    (rows != known).then(|| format!("{rows} rows are counted, and there are {known}"))
}

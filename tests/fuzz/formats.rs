//! Bytes that rest in the base and in the log, or travel between nodes.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use strongroom::escrow::command::{Command, Reply};
use strongroom::escrow::compliance::{
    ComplianceChange, CompliancePolicyRecord, ComplianceRecord, Exemption, HistoryIndex, LastContact,
};
use strongroom::escrow::inventory::InventoryRecord;
use strongroom::escrow::journal::JournalEntry;
use strongroom::escrow::records::*;
use strongroom::escrow::rows::*;
use strongroom::raft::leader::Forwarded;
use strongroom::store::applied::Applied;
use strongroom::store::block::{self, Block, LAST_BOUND};
use strongroom::store::format::{self, Payload, VALUE_MAX_BYTES};

use crate::{Bound, fuzz};

/// What every release has to read.
const GOLDEN: [&str; 2] = [
    include_str!("../../src/store/testdata/golden.txt"),
    include_str!("../../src/store/testdata/golden-compliance.txt"),
];
/// A length that was made up costs no more than the largest value may have.
const VALUE: Bound = Bound { bytes: 2 * VALUE_MAX_BYTES as u64, per_byte: 64 };
/// As much as can be packed into so many bytes, and its rows.
const BLOCK: Bound = Bound { bytes: 64 * 1024, per_byte: 255 * 8 };

/// The golden vectors whose names begin so.
pub fn golden(prefixes: &[&str]) -> Vec<Vec<u8>> {
    let lines = GOLDEN.iter().flat_map(|text| text.lines()).filter(|line| !line.starts_with('#'));
    let named = lines.filter_map(|line| line.split_once(": "));
    let wanted = named.filter(|(name, _)| prefixes.iter().any(|prefix| name.starts_with(prefix)));
    wanted.map(|(_, hex)| data_encoding::HEXLOWER.decode(hex.as_bytes()).expect("hexadecimal")).collect()
}

/// It is refused, or it is a value that comes back from its own bytes.
fn comes_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(value) = format::decode::<T>(bytes) {
        let again = format::encode(&value);
        assert_eq!(format::decode::<T>(&again).expect("what was decoded can be encoded"), value);
    }
}

#[test]
fn a_row_of_any_table_is_refused_or_comes_back() {
    macro_rules! each {
        ($($row:ty),* $(,)?) => { |bytes: &[u8]| { $(comes_back::<$row>(bytes);)* } };
    }
    let check = each!(
        ClusterRecord,
        Heads,
        KeyringRecord,
        NodeRecord,
        DepartedNode,
        FeatureLevelRecord,
        PolicyRecord,
        MachineRecord,
        UserMachine,
        LastContact,
        InventoryRecord,
        KeyRecord,
        MachineKey,
        KeyHistory,
        Approval,
        UsedApproval,
        ReconciledEntry,
        ResealRecord,
        AuditRecord,
        RequestRow,
        RequestSlot,
        RevealTally,
        DenialTally,
        ExemptionTally,
        ComplianceRecord,
        ComplianceChange,
        HistoryIndex,
        Exemption,
        CompliancePolicyRecord,
    );
    fuzz("rows", 1_000, VALUE, golden(&["row "]), check);
}

#[test]
fn what_is_in_the_log_is_refused_or_comes_back() {
    let log = golden(&["log "]);
    fuzz("log records", 1_000, VALUE, log, |bytes| {
        if let Ok(payload) = Payload::decode(bytes) {
            assert_eq!(payload.encode(), bytes);
        }
    });
    let commands = golden(&["command "]);
    fuzz("commands", 2_000, VALUE, commands, |bytes| {
        comes_back::<Command>(bytes);
        // As another node passes it on.
        drop(Forwarded::decode(bytes.to_vec().into()));
    });
    let others = golden(&["reply ", "journal entry", "applied"]);
    fuzz("replies, entries of a journal, where a state stands", 1_000, VALUE, others, |bytes| {
        comes_back::<Reply>(bytes);
        comes_back::<JournalEntry>(bytes);
        comes_back::<Applied>(bytes);
    });
}

#[test]
fn a_block_of_rows_is_refused_or_comes_back() {
    let rows = golden(&["row "]);
    let keys: Vec<Vec<u8>> = (0..rows.len()).map(|at| format!("key {at:03}").into_bytes()).collect();
    let pack = |rows: &block::BlockRows<'_>| block::pack(rows, LAST_BOUND).remove(0).1;
    let some = |count: usize| {
        pack(&keys.iter().zip(&rows).take(count).map(|(key, row)| (&key[..], &row[..])).collect())
    };
    let alike = vec![b'a'; 3_000];
    let samples = vec![some(1), some(3), some(12), pack(&[(&b"alike"[..], &alike[..])].into())];
    fuzz("blocks", 2_000, BLOCK, samples, |bytes| {
        let Ok(block) = Block::unpack(bytes) else { return };
        let Ok(rows) = block.rows() else { return };
        let packed = block::pack(&rows, LAST_BOUND);
        let blocks: Vec<Block> = packed.iter().map(|(_, packed)| Block::unpack(packed).unwrap()).collect();
        let again: Vec<_> = blocks.iter().flat_map(Block::iter).collect::<Result<_, _>>().unwrap();
        assert_eq!(again, rows.into_iter().collect::<Vec<_>>());
    });
}

/// A few bytes that say that gigabytes follow.
#[test]
fn a_length_that_is_made_up_takes_no_memory_to_speak_of() {
    let lengths: [&[u8]; 3] = [
        &[0xfc, 0xff, 0xff, 0xff, 0xff],
        &[0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        &[0xfc, 0, 0, 0xff, 0],
    ];
    for length in lengths {
        for at in 0..12 {
            let bytes = [&[format::VERSION], &[0; 12][..at], length].concat();
            let check = |bytes: &[u8]| {
                drop(format::decode::<Vec<u64>>(bytes));
                drop(format::decode::<Vec<Vec<String>>>(bytes));
                drop(format::decode::<KeyringRecord>(bytes));
                drop(format::decode::<Command>(bytes));
                drop(Block::unpack(&bytes[1..]));
            };
            crate::bounded(VALUE, &bytes, check).unwrap();
        }
    }
}

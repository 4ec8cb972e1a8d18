//! Compliance: what devices say of their volumes, what the organisation wants of them, and how each machine stands.
//!
//! A device uploads a [`MachineReport`] to any node. Apply keeps the newest one of each machine as a
//! [`ComplianceRecord`] and every change of its [`MachineState`] as a [`ComplianceChange`]; an upload that says nothing
//! new moves only the times in [`LastContact`]. Nothing that is kept says *compliant*: the [`verdict`](verdict()) is worked out when it is
//! asked for, from the state, the [`CompliancePolicy`], the machine's keys and its exemption, so that a changed policy
//! judges every machine anew at once.
//!
//! | file | what it holds |
//! |---|---|
//! | [`words`] | the words that documents, rows and reports share |
//! | [`codes`] | MBAM's codes for why a volume does not comply |
//! | [`facts`] | what a device says, and its bounds |
//! | [`document`] | the same as a JSON document, with its schema |
//! | [`state`] | the part of it whose changes are kept |
//! | [`record`] | what is kept of a machine, and which of two reports counts |
//! | [`contact`] | when a machine was last heard of, and confirmed what it had said |
//! | [`history`] | the changes of state of a machine |
//! | [`stood`] | how a machine stood at a time |
//! | [`policy`] | what is wanted of every machine |
//! | [`exemption`] | which machines need not be as wanted |
//! | [`verdict`](mod@verdict) | how a machine stands, and why |
//! | [`findings`](mod@findings) | where keys and compliance do not go together |

pub mod codes;
pub mod contact;
pub mod document;
pub mod exemption;
pub mod facts;
pub mod findings;
pub mod history;
pub mod policy;
pub mod record;
pub mod state;
pub mod stood;
pub mod verdict;
pub mod words;

pub use codes::Code;
pub use contact::{LastContact, Said};
pub use exemption::{
    EndedExemption, Exemption, ExemptionDecision, ExemptionGrant, ExemptionRejection, ExemptionRequest,
};
pub use facts::{DeviceError, DevicePolicy, MachineReport, Percent, VolumeReport};
pub use findings::{Finding, findings};
pub use history::{ComplianceChange, History, HistoryIndex, Moment, Told};
pub use policy::{CompliancePolicy, CompliancePolicyRecord};
pub use record::{ComplianceRecord, Kept, Merged};
pub use state::{MachineState, VolumeState};
pub use stood::Stood;
pub use verdict::{Evidence, KeyFacts, Known, Reason, Verdict, verdict};
pub use words::{FindingKind, ReasonKind, Status};

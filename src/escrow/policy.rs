//! Which role may ask for what: one table, read by the RPC guard before anything is done and again by apply, which
//! decides.

pub mod document;

use super::ids::{Identity, MachineId, Role};

/// What can be asked of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Grant or reject a reveal that somebody else asked for, and see which are asked for.
    Approve,
    /// Add, promote, demote, remove or replace a member, or move the leadership.
    ChangeMembership,
    /// Challenge every member to prove that it holds a key.
    Custody,
    /// Grant, reject and end exemptions from the policy of compliance.
    DecideExemption,
    /// Keep a recovery key; see [`may_escrow`] for whose.
    Escrow,
    /// Keep many recovery keys, of any machines, at once, and note the machines themselves.
    EscrowMany,
    /// Look keys up, without their secrets.
    Find,
    /// Make the first entry of a new cluster. Not a service: a node does it to itself when told to.
    Initialize,
    /// Allow the commands of a newer release. Not a service: the leader does it once every member can apply them.
    RaiseFeatureLevel,
    /// Put on record what a node decided without a quorum. Not a service: nodes do it by themselves.
    Reconcile,
    /// Read what is known of the compliance of machines: records, reports, exemptions and the policy of it.
    ReadCompliance,
    /// Read the audit trail, and where every member says it ends.
    ReadAudit,
    /// Reveal a recovery key; see [`must_name_user`] for to whom.
    Recover,
    /// Begin a new history after a quorum was lost for ever. Not a service: a node does it to itself when told to.
    RecoverCluster,
    /// Keep what a device says of itself; see [`may_report`] for which.
    ReportCompliance,
    /// Keep what many devices say of themselves, at once.
    ReportComplianceMany,
    /// Ask that a machine need not be as the policy of compliance wants it.
    RequestExemption,
    /// Replace the policy of compliance.
    SetCompliancePolicy,
    /// Replace the policy of reveals.
    SetPolicy,
    /// See the policy of reveals.
    ShowPolicy,
    /// Seal kept keys under the current data key, and drop older ones. Not a service: the leader does it.
    Reseal,
    /// Replace the data key by a new one.
    RotateKeyring,
    /// Ask how the cluster is.
    Status,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 23] = [
        Self::Approve,
        Self::ChangeMembership,
        Self::Custody,
        Self::DecideExemption,
        Self::Escrow,
        Self::EscrowMany,
        Self::Find,
        Self::Initialize,
        Self::RaiseFeatureLevel,
        Self::ReadAudit,
        Self::ReadCompliance,
        Self::Reconcile,
        Self::Recover,
        Self::RecoverCluster,
        Self::ReportCompliance,
        Self::ReportComplianceMany,
        Self::RequestExemption,
        Self::Reseal,
        Self::RotateKeyring,
        Self::SetCompliancePolicy,
        Self::SetPolicy,
        Self::ShowPolicy,
        Self::Status,
    ];
}

impl std::fmt::Display for Operation {
    /// What it is that one may or may not.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Approve => "approve reveals",
            Self::ChangeMembership => "change the membership",
            Self::Custody => "ask for custody",
            Self::DecideExemption => "decide about exemptions",
            Self::Escrow => "escrow keys",
            Self::EscrowMany => "import keys and machines",
            Self::Find => "look keys up",
            Self::Initialize => "initialise a cluster",
            Self::RaiseFeatureLevel => "raise the feature level",
            Self::ReadAudit => "read the audit trail",
            Self::ReadCompliance => "read compliance",
            Self::Reconcile => "reconcile journals",
            Self::Recover => "recover keys",
            Self::RecoverCluster => "recover a cluster",
            Self::ReportCompliance => "report compliance",
            Self::ReportComplianceMany => "report compliance in bulk",
            Self::RequestExemption => "request exemptions",
            Self::SetCompliancePolicy => "set the policy of compliance",
            Self::SetPolicy => "set the policy",
            Self::ShowPolicy => "see the policy",
            Self::Reseal => "seal keys anew",
            Self::RotateKeyring => "rotate the data key",
            Self::Status => "ask for status",
        })
    }
}

/// Whether `role` may ask for `operation` at all. Nodes have a port of their own and none of the client operations.
pub fn allows(role: Role, operation: Operation) -> bool {
    use Operation::{
        Approve, ChangeMembership, Custody, DecideExemption, Escrow, EscrowMany, Find, Initialize,
        RaiseFeatureLevel, ReadAudit, ReadCompliance, Reconcile, Recover, RecoverCluster, ReportCompliance,
        ReportComplianceMany, RequestExemption, Reseal, RotateKeyring, SetCompliancePolicy, SetPolicy,
        ShowPolicy, Status,
    };
    match role {
        Role::Agent => matches!(operation, Escrow | ReportCompliance | Status),
        Role::Importer => {
            matches!(operation, Escrow | EscrowMany | ReportCompliance | ReportComplianceMany | Status)
        }
        Role::Auditor => {
            matches!(operation, Custody | Find | ReadAudit | ReadCompliance | ShowPolicy | Status)
        }
        Role::Helpdesk => matches!(
            operation,
            Custody | Find | ReadCompliance | Recover | RequestExemption | ShowPolicy | Status
        ),
        Role::HelpdeskAdvanced => matches!(
            operation,
            Approve | Custody | Find | ReadCompliance | Recover | RequestExemption | ShowPolicy | Status
        ),
        Role::Node => {
            matches!(operation, Initialize | RaiseFeatureLevel | Reconcile | RecoverCluster | Reseal)
        }
        Role::Officer => matches!(
            operation,
            Approve
                | Custody
                | DecideExemption
                | Find
                | ReadCompliance
                | RotateKeyring
                | SetCompliancePolicy
                | SetPolicy
                | ShowPolicy
                | Status
        ),
        Role::Operator => matches!(
            operation,
            ChangeMembership
                | Custody
                | Find
                | Initialize
                | ReadCompliance
                | RequestExemption
                | RotateKeyring
                | ShowPolicy
                | Status
        ),
        Role::SelfService => matches!(operation, Find | Recover | Status),
    }
}

/// Whether `by` may escrow a key of `machine`: an agent only of the machine it is, an importer of any.
pub fn may_escrow(by: &Identity, machine: &MachineId) -> bool {
    allows(by.role, Operation::Escrow) && (by.role != Role::Agent || by.name == machine.as_str())
}

/// Whether `by` may report the compliance of `machine`: an agent only of the machine it is, an importer of any.
pub fn may_report(by: &Identity, machine: &MachineId) -> bool {
    allows(by.role, Operation::ReportCompliance) && (by.role != Role::Agent || by.name == machine.as_str())
}

/// Whether `role` reveals a key only for a user who is named and known on its machine. An end user is that user.
pub fn must_name_user(role: Role) -> bool {
    role == Role::Helpdesk
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_may_do_exactly_what_the_table_says() {
        // One column an operation, in the order of `Operation::ALL`.
        let table = [
            // approve change custody decide-exemption escrow escrow-many find init raise read-audit read-compliance
            // reconcile recover recover-cluster report-compliance report-compliance-many request-exemption reseal rotate
            // set-compliance-policy set-policy show-policy status
            (Role::Agent, "....x.........x.......x"),
            (Role::Auditor, "..x...x..xx..........xx"),
            (Role::Helpdesk, "..x...x...x.x...x....xx"),
            (Role::HelpdeskAdvanced, "x.x...x...x.x...x....xx"),
            (Role::Importer, "....xx........xx......x"),
            (Role::Node, ".......xx..x.x...x....."),
            (Role::Officer, "x.xx..x...x.......xxxxx"),
            (Role::Operator, ".xx...xx..x.....x.x..xx"),
            (Role::SelfService, "......x.....x.........x"),
        ];
        assert_eq!(table.map(|(role, _)| role), Role::ALL);
        for (role, row) in table {
            let allowed = Operation::ALL.map(|operation| if allows(role, operation) { 'x' } else { '.' });
            assert_eq!(allowed.iter().collect::<String>(), row, "{role}");
        }
    }

    #[test]
    fn an_agent_escrows_and_reports_for_its_own_machine_only() {
        let by = |role, name| Identity::new("acme".parse().unwrap(), role, name).unwrap();
        let machine: MachineId = "PC-0001".parse().unwrap();
        assert!(may_escrow(&by(Role::Agent, "PC-0001"), &machine));
        assert!(!may_escrow(&by(Role::Agent, "PC-0002"), &machine));
        assert!(!may_escrow(&by(Role::Agent, "pc-0001"), &machine));
        assert!(may_escrow(&by(Role::Importer, "migration"), &machine));
        assert!(!may_escrow(&by(Role::Operator, "PC-0001"), &machine));
        assert!(may_report(&by(Role::Agent, "PC-0001"), &machine));
        assert!(!may_report(&by(Role::Agent, "pc-0001"), &machine));
        assert!(may_report(&by(Role::Importer, "migration"), &machine));
        assert!(!may_report(&by(Role::Operator, "PC-0001"), &machine));
    }

    #[test]
    fn only_the_plain_help_desk_names_the_user() {
        for role in Role::ALL {
            assert_eq!(must_name_user(role), role == Role::Helpdesk);
        }
    }
}

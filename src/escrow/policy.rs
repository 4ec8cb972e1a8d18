//! Which role may ask for what: one table, read by the RPC guard before anything is done and again by apply, which
//! decides.

use super::ids::{Identity, MachineId, Role};

/// What can be asked of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Add, promote, demote, remove or replace a member, or move the leadership.
    ChangeMembership,
    /// Challenge every member to prove that it holds a key.
    Custody,
    /// Keep a recovery key; see [`may_escrow`] for whose.
    Escrow,
    /// Look keys up, without their secrets.
    Find,
    /// Make the first entry of a new cluster. Not a service: a node does it to itself when told to.
    Initialize,
    /// Allow the commands of a newer release. Not a service: the leader does it once every member can apply them.
    RaiseFeatureLevel,
    /// Reveal a recovery key; see [`must_name_user`] for to whom.
    Recover,
    /// Begin a new history after a quorum was lost for ever. Not a service: a node does it to itself when told to.
    RecoverCluster,
    /// Seal kept keys under the current data key, and drop older ones. Not a service: the leader does it.
    Reseal,
    /// Replace the data key by a new one.
    RotateKeyring,
    /// Ask how the cluster is.
    Status,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 11] = [
        Self::ChangeMembership,
        Self::Custody,
        Self::Escrow,
        Self::Find,
        Self::Initialize,
        Self::RaiseFeatureLevel,
        Self::Recover,
        Self::RecoverCluster,
        Self::Reseal,
        Self::RotateKeyring,
        Self::Status,
    ];
}

impl std::fmt::Display for Operation {
    /// What it is that one may or may not.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ChangeMembership => "change the membership",
            Self::Custody => "ask for custody",
            Self::Escrow => "escrow keys",
            Self::Find => "look keys up",
            Self::Initialize => "initialise a cluster",
            Self::RaiseFeatureLevel => "raise the feature level",
            Self::Recover => "recover keys",
            Self::RecoverCluster => "recover a cluster",
            Self::Reseal => "seal keys anew",
            Self::RotateKeyring => "rotate the data key",
            Self::Status => "ask for status",
        })
    }
}

/// Whether `role` may ask for `operation` at all. Nodes have a port of their own and none of the client operations.
pub fn allows(role: Role, operation: Operation) -> bool {
    use Operation::{
        ChangeMembership, Custody, Escrow, Find, Initialize, RaiseFeatureLevel, Recover, RecoverCluster,
        Reseal, RotateKeyring, Status,
    };
    match role {
        Role::Agent | Role::Importer => matches!(operation, Escrow | Status),
        Role::Auditor | Role::Officer => matches!(operation, Custody | Find | Status),
        Role::Helpdesk | Role::HelpdeskAdvanced => matches!(operation, Custody | Find | Recover | Status),
        Role::Node => matches!(operation, Initialize | RaiseFeatureLevel | RecoverCluster | Reseal),
        Role::Operator => {
            matches!(operation, ChangeMembership | Custody | Find | Initialize | RotateKeyring | Status)
        }
    }
}

/// Whether `by` may escrow a key of `machine`: an agent only of the machine it is, an importer of any.
pub fn may_escrow(by: &Identity, machine: &MachineId) -> bool {
    allows(by.role, Operation::Escrow) && (by.role != Role::Agent || by.name == machine.as_str())
}

/// Whether `role` reveals a key only to a user who is named and known on its machine.
pub fn must_name_user(role: Role) -> bool {
    role != Role::HelpdeskAdvanced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_may_do_exactly_what_the_table_says() {
        // One column an operation, in the order of `Operation::ALL`.
        let table = [
            // change custody escrow find init raise recover recover-cluster reseal rotate status
            (Role::Agent, "..x.......x"),
            (Role::Auditor, ".x.x......x"),
            (Role::Helpdesk, ".x.x..x...x"),
            (Role::HelpdeskAdvanced, ".x.x..x...x"),
            (Role::Importer, "..x.......x"),
            (Role::Node, "....xx.xx.."),
            (Role::Officer, ".x.x......x"),
            (Role::Operator, "xx.xx....xx"),
        ];
        assert_eq!(table.map(|(role, _)| role), Role::ALL);
        for (role, row) in table {
            let allowed = Operation::ALL.map(|operation| if allows(role, operation) { 'x' } else { '.' });
            assert_eq!(allowed.iter().collect::<String>(), row, "{role}");
        }
    }

    #[test]
    fn an_agent_escrows_for_its_own_machine_only() {
        let by = |role, name| Identity::new("acme".parse().unwrap(), role, name).unwrap();
        let machine: MachineId = "PC-0001".parse().unwrap();
        assert!(may_escrow(&by(Role::Agent, "PC-0001"), &machine));
        assert!(!may_escrow(&by(Role::Agent, "PC-0002"), &machine));
        assert!(!may_escrow(&by(Role::Agent, "pc-0001"), &machine));
        assert!(may_escrow(&by(Role::Importer, "migration"), &machine));
        assert!(!may_escrow(&by(Role::Operator, "PC-0001"), &machine));
    }

    #[test]
    fn only_the_advanced_help_desk_need_not_name_the_user() {
        for role in Role::ALL {
            assert_eq!(must_name_user(role), role != Role::HelpdeskAdvanced);
        }
    }
}

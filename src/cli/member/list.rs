//! `strongroom member list`.

use serde_json::{Value, json};

use crate::cli::output::table;
use crate::cli::{Failure, Printer};
use crate::proto::StatusResponse;

pub(super) fn print(status: &StatusResponse, printer: Printer) -> Result<(), Failure> {
    let members: Vec<Value> = status
        .nodes
        .iter()
        .map(|node| {
            json!({
                "id": node.id,
                "role": node.role,
                "voter": node.voter,
                "zone": node.zone,
                "api": node.api_address,
                "peer": node.peer_address,
                "reachable": node.reachable,
            })
        })
        .collect();
    printer.result(&json!({ "members": members, "leader": status.leader }), || text(status))
}

fn text(status: &StatusResponse) -> String {
    let rows = status.nodes.iter().map(|node| {
        let votes = if node.voter { "yes" } else { "no" };
        let zone = if node.zone.is_empty() { "-" } else { &node.zone };
        let text = [&node.role, votes, zone, &node.peer_address, &node.api_address];
        std::iter::once(node.id.to_string()).chain(text.map(str::to_owned)).collect()
    });
    table(&["NODE", "ROLE", "VOTES", "ZONE", "PEER", "API"], &[0], rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::NodeStatus;

    #[test]
    fn the_table_of_members_fits_in_80_columns_and_shows_the_addresses_of_both_ports() {
        let node = NodeStatus {
            id: 1,
            role: "unreachable".into(),
            zone: "west-1".into(),
            api_address: "192.168.100.1:7420".into(),
            peer_address: "192.168.100.1:7421".into(),
            ..NodeStatus::default()
        };
        let text = text(&StatusResponse { nodes: vec![node], ..StatusResponse::default() });
        assert!(text.contains("192.168.100.1:7421  192.168.100.1:7420"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }
}

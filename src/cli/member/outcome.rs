//! What a change came to, or would.

use serde_json::{Value, json};

use crate::cli::output::table;
use crate::proto::{MemberProgress, Members};

/// The end of a change, or of its dry run.
pub(super) struct Outcome<'a> {
    /// The name of the change.
    pub(super) change: &'static str,
    /// Nothing was changed.
    pub(super) dry_run: bool,
    /// The last the leader said.
    pub(super) ended: &'a MemberProgress,
}

impl Outcome<'_> {
    /// As JSON. The names are a contract.
    pub(super) fn json(&self) -> Value {
        let MemberProgress { step, node, before, after, warnings, .. } = self.ended;
        json!({
            "change": self.change,
            "dry_run": self.dry_run,
            "node": (*node > 0).then_some(node),
            "step": step,
            "before": members(before.as_ref()),
            "after": members(after.as_ref()),
            "warnings": warnings,
        })
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let nobody = Members::default();
        let before = self.ended.before.as_ref().unwrap_or(&nobody);
        let after = self.ended.after.as_ref().unwrap_or(&nobody);
        let leader =
            |members: &Members| members.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string());
        let row = |name: &str, of: &dyn Fn(&Members) -> String| vec![name.to_owned(), of(before), of(after)];
        let rows = vec![
            row("voters", &|members| ids(&members.voters)),
            row("learners", &|members| ids(&members.learners)),
            row("quorum", &|members| members.quorum.to_string()),
            row("failures tolerated", &|members| members.failure_tolerance.to_string()),
            row("leader", &leader),
        ];
        let then = if self.dry_run { "THEN" } else { "NOW" };
        let ended = if self.dry_run { "a dry run: nothing was changed" } else { "done" };
        format!("{}\n{}: {ended}", table(&["", "BEFORE", then], &[], rows), self.change)
    }
}

fn members(members: Option<&Members>) -> Value {
    let nobody = Members::default();
    let Members { voters, learners, quorum, failure_tolerance, leader } = members.unwrap_or(&nobody);
    json!({
        "voters": voters,
        "learners": learners,
        "quorum": quorum,
        "failure_tolerance": failure_tolerance,
        "leader": leader,
    })
}

fn ids(ids: &[u64]) -> String {
    if ids.is_empty() {
        return "none".to_owned();
    }
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended() -> MemberProgress {
        let before = Members {
            voters: vec![1, 2, 3],
            learners: vec![7],
            quorum: 2,
            failure_tolerance: 1,
            leader: Some(1),
        };
        let after = Members { voters: vec![1, 2, 3, 4], learners: vec![7], quorum: 3, ..before.clone() };
        MemberProgress {
            step: "planned".into(),
            node: 4,
            before: Some(before),
            after: Some(after),
            warnings: vec!["even".into()],
            ..MemberProgress::default()
        }
    }

    #[test]
    fn json_has_the_names_of_the_contract() {
        let ended = ended();
        let json = Outcome { change: "add", dry_run: true, ended: &ended }.json();
        let expected = json!({
            "change": "add", "dry_run": true, "node": 4, "step": "planned",
            "before": {
                "voters": [1, 2, 3], "learners": [7], "quorum": 2, "failure_tolerance": 1, "leader": 1
            },
            "after": {
                "voters": [1, 2, 3, 4], "learners": [7], "quorum": 3, "failure_tolerance": 1, "leader": 1
            },
            "warnings": ["even"],
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn the_table_shows_voters_quorum_and_tolerance_before_and_after() {
        let ended = ended();
        let text = Outcome { change: "add", dry_run: true, ended: &ended }.text();
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert_eq!(line("voters").split_whitespace().collect::<String>(), "voters1,2,31,2,3,4");
        assert_eq!(line("quorum").split_whitespace().collect::<Vec<_>>(), ["quorum", "2", "3"]);
        assert!(line("failures tolerated").ends_with('1'), "{text}");
        assert!(text.ends_with("add: a dry run: nothing was changed"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }
}

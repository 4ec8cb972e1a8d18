//! Script commands about nodes without a quorum: they share one replica, and each has a journal of its own.

use goldenscript::ArgumentConsumer;
use uuid::Uuid;

use super::{BEGINNING_MS, Outcome, Script, full, id, identity, optional, or_none};
use crate::escrow::apply::apply;
use crate::escrow::command::{Action, Command, DecideApproval, Reconcile};
use crate::escrow::disclosure::Asked;
use crate::escrow::ids::{Identity, KeyId, RequestId, Timestamp};
use crate::escrow::journal::alone::{Circumstances, Verdict, Waiting, decide, decide_approval};
use crate::escrow::journal::approvals::standing;
use crate::escrow::journal::{JournalEntry, JournalPlace, Noted};
use crate::escrow::lookup;
use crate::escrow::records::{LogPosition, Source};

#[derive(Default)]
pub(super) struct Journal {
    entries: Vec<JournalEntry>,
    appended: u64,
}

/// Who asks at which node.
struct Call {
    node: u64,
    by: Identity,
    at: Timestamp,
    request: RequestId,
    drawn: RequestId,
}

impl Script {
    fn call(&mut self, args: &mut ArgumentConsumer<'_>, by: &str) -> Outcome<Call> {
        self.requests += 1;
        self.seconds = optional(args, "at")?.unwrap_or(self.seconds + 1);
        Ok(Call {
            node: optional(args, "node")?.unwrap_or(1),
            by: identity(args.take_key("by").unwrap_or(by))?,
            at: Timestamp(BEGINNING_MS + 1_000 * self.seconds),
            request: RequestId(id(args, "request")?.unwrap_or(Uuid::from_u128(self.requests))),
            drawn: RequestId(id(args, "drawn")?.unwrap_or(Uuid::from_u128(self.requests << 64))),
        })
    }

    pub(super) fn alone(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let call = self.call(args, "helpdesk-advanced/desk2")?;
        let key_id = KeyId(id(args, "key")?.ok_or("key= is missing")?);
        let (user, reason) =
            (optional(args, "user")?, args.take_key("reason").unwrap_or("lost PIN").to_owned());
        self.at_node(&call, |rows, waiting, circumstances| {
            let asked = Asked { by: &call.by, key_id, user: user.as_ref(), reason: &reason, at: call.at };
            Ok(decide(rows, waiting, circumstances, &asked)?)
        })
    }

    pub(super) fn alone_decide(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let call = self.call(args, "officer/olga")?;
        let approval = RequestId(id(args, "approval")?.ok_or("approval= is missing")?);
        let what = DecideApproval { approval, granted: optional(args, "granted")?.unwrap_or(true) };
        self.at_node(&call, |rows, waiting, circumstances| {
            Ok(decide_approval(rows, waiting, circumstances, &call.by, call.at, &what)?)
        })
    }

    pub(super) fn alone_list(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let call = self.call(args, "officer/olga")?;
        let own = self.own(call.node);
        let lines = standing(&self.state, &own, call.at)?.into_iter().map(|asked| {
            let person = asked.ask.by.person();
            format!("{} by {person} granted-by={}", asked.ask.approval, or_none(asked.granted_by))
        });
        let lines: Vec<String> = lines.collect();
        Ok(if lines.is_empty() { "nothing".to_owned() } else { lines.join("\n") })
    }

    pub(super) fn heal(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let node = optional(args, "node")?.unwrap_or(1);
        let only: Option<Vec<u64>> =
            args.take_key("entries").map(|list| list.split('/').map(str::parse).collect()).transpose()?;
        let mut text = Vec::new();
        for entry in self.own(node) {
            if only.as_ref().is_some_and(|only| !only.contains(&entry.place.sequence)) {
                continue;
            }
            (self.index, self.requests, self.seconds) = (self.index + 1, self.requests + 1, self.seconds + 1);
            let command = Command {
                request: RequestId(Uuid::from_u128(self.requests)),
                at: Timestamp(BEGINNING_MS + 1_000 * self.seconds),
                by: identity("node/2")?,
                source: Source { node: 2, address: String::new() },
                action: Action::Reconcile(Reconcile { entry }),
            };
            let position = LogPosition { term: 1, index: self.index };
            text.push(super::describe(&apply(&mut self.state, position, &command)?));
        }
        let state = &self.state;
        let journal = self.journals.entry(node).or_default();
        let on_record = |entry: &&JournalEntry| matches!(lookup::reconciled(state, entry), Ok(Some(_)));
        let done = journal.entries.iter().take_while(on_record).count();
        journal.entries.drain(..done);
        text.push(format!("{} left", journal.entries.len()));
        Ok(text.join("\n"))
    }

    fn own(&self, node: u64) -> Vec<JournalEntry> {
        self.journals.get(&node).map(|journal| journal.entries.clone()).unwrap_or_default()
    }

    fn at_node(
        &mut self,
        call: &Call,
        decide: impl FnOnce(&crate::escrow::memory::Memory, &Waiting<'_>, &Circumstances<'_>) -> Outcome<Verdict>,
    ) -> Outcome {
        let own = self.own(call.node);
        let others = self.journals.iter().filter(|(node, _)| **node != call.node);
        let told: Vec<JournalEntry> = others.flat_map(|(_, journal)| journal.entries.clone()).collect();
        let source = Source { node: call.node, address: "192.0.2.7".to_owned() };
        let circumstances = Circumstances {
            request: call.request,
            drawn: call.drawn,
            source: &source,
            quorum_age_ms: Some(5_000),
            position: LogPosition { term: 1, index: self.index },
        };
        let verdict = decide(&self.state, &Waiting { own: &own, told: &told }, &circumstances)?;
        Ok(match verdict {
            Verdict::Again(entry) => format!("again: {}", describe(&entry.what)),
            Verdict::Closed => "closed".to_owned(),
            Verdict::Refused(refusal) => format!("refused: {refusal}"),
            Verdict::Waits(ask) => format!("waits {} at node {}", ask.approval, ask.source.node),
            Verdict::Decided(what) => {
                let journal = self.journals.entry(call.node).or_default();
                journal.appended += 1;
                let place =
                    JournalPlace { journal: full(&call.node.to_string())?, sequence: journal.appended };
                let text = describe(&what);
                journal.entries.push(JournalEntry { place, previous: [0; 32], what: *what });
                text
            }
        })
    }
}

fn describe(what: &Noted) -> String {
    match what {
        Noted::Reveal(reveal) => match &reveal.denied {
            None => format!("shown approval={}", or_none(reveal.approval)),
            Some(refusal) => format!("denied: {refusal}"),
        },
        Noted::ApprovalAsked(ask) => format!("needs approval {} until {}", ask.approval, ask.expires_at),
        Noted::ApprovalDecided(decision) => match &decision.denied {
            Some(refusal) => format!("denied: {refusal}"),
            None if decision.granted => "granted".to_owned(),
            None => "rejected".to_owned(),
        },
    }
}

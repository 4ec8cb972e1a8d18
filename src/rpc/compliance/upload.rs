//! Taking what devices say. What says nothing new is seen on this node's own replica, and goes through the log as a
//! contact of a few bytes; of a stream, a whole batch goes in one entry.

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use tokio::task::JoinHandle;
use tonic::{Request, Status, Streaming};
use tracing::Instrument as _;
use uuid::Uuid;

use super::{Context, unexpected};
use crate::escrow::apply::COMPLIANCE_BATCH_MAX;
use crate::escrow::command::{
    Action, Command, Contact, NoteContact, Refusal, Reply, ReportCompliance, UploadOutcome,
};
use crate::escrow::compliance::{MachineReport, Merged};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{Invalid, RequestId};
use crate::escrow::lookup;
use crate::escrow::policy::{Operation, may_report};
use crate::proto::{self, PutComplianceRequest, PutComplianceResponse, PutManyRequest, PutManyResponse};
use crate::raft::on_own_thread;
use crate::request_id::carried;
use crate::rpc::guard::Caller;
use crate::rpc::now;
use crate::rpc::serving::{Answers, Places, Serving};

/// Batches of one stream that are worked on at once: while one is on its way to the quorum's disks, the next is read.
const BATCHES_UNDER_WAY_MAX: usize = 4;
/// Answers that wait for the uploader to take them.
const ANSWERS_AHEAD: usize = 1;

impl Context {
    /// Begins to take what an importer uploads: batches, answered in their order.
    pub(super) async fn upload(
        &self,
        places: &Places,
        request: Request<Streaming<PutManyRequest>>,
    ) -> Result<Answers<PutManyResponse>, Status> {
        let caller = self.admit(&request, Operation::ReportComplianceMany)?;
        self.require_level(FeatureLevel::COMPLIANCE).await?;
        let (serving, answers) = Serving::begin(self, &request, places.take()?, ANSWERS_AHEAD);
        let uploader = Uploader { context: self.clone(), caller, under_way: FuturesOrdered::new() };
        tokio::spawn(carried(uploader.serve(serving, request.into_inner())).in_current_span());
        Ok(answers)
    }
}

/// One stream of uploads while it is served.
struct Uploader {
    context: Context,
    caller: Caller,
    /// Batches that are worked on, in their order.
    under_way: FuturesOrdered<JoinHandle<Result<PutManyResponse, Status>>>,
}

impl Uploader {
    async fn serve(mut self, serving: Serving<PutManyResponse>, batches: Streaming<PutManyRequest>) {
        if let Err(why) = self.work(&serving, batches).await {
            tracing::info!(by = %self.caller.identity, why = why.message(), "a stream of uploads breaks off");
            serving.end(why);
        }
    }

    /// Answers every batch that comes. What was read before the end of the stream, whatever ended it, is still answered.
    async fn work(
        &mut self,
        serving: &Serving<PutManyResponse>,
        mut batches: Streaming<PutManyRequest>,
    ) -> Result<(), Status> {
        let mut end: Option<Result<(), Status>> = None;
        loop {
            if self.under_way.is_empty()
                && let Some(end) = end
            {
                return end;
            }
            let reads = end.is_none() && self.under_way.len() < BATCHES_UNDER_WAY_MAX;
            tokio::select! {
                biased;
                Some(done) = self.under_way.next(), if !self.under_way.is_empty() => {
                    let answer = done.map_err(|error| Status::internal(format!("a batch ended: {error}")))??;
                    serving.send(answer).await?;
                }
                batch = serving.next(&mut batches), if reads => {
                    match batch.and_then(|batch| serving.check().map(|()| batch)) {
                        Ok(Some(batch)) => self.begin(batch),
                        Ok(None) => end = Some(Ok(())),
                        Err(status) => end = Some(Err(status)),
                    }
                }
            }
        }
    }

    /// Begins to work on a batch, on a task of its own: it does not wait for answers that are not taken.
    fn begin(&mut self, batch: PutManyRequest) {
        let (context, caller) = (self.context.clone(), self.caller.clone());
        let work = async move {
            let kept = context.keep_documents(&caller, batch.documents);
            let (outcomes, index) = context.unless_removed(kept).await?;
            Ok(PutManyResponse { outcomes, index })
        };
        self.under_way.push_back(tokio::spawn(carried(work).in_current_span()));
    }
}

/// One upload on its way through.
struct Upload {
    /// Its place among those that came together.
    place: usize,
    report: MachineReport,
}

impl Context {
    pub(super) async fn keep_one(
        &self,
        caller: &Caller,
        request: PutComplianceRequest,
    ) -> Result<PutComplianceResponse, Status> {
        let report = MachineReport::from_json(&request.document)?;
        check_may(caller, &report)?;
        let uploads = vec![Upload { place: 0, report }];
        let mut outcomes = vec![None];
        let index = self.bring(caller, uploads, &mut outcomes).await?;
        match outcomes.pop().flatten() {
            Some((machine, UploadOutcome::Taken { merged, rotation_owed_since })) => {
                let outcome = taken(machine, merged, rotation_owed_since.map(|since| since.0));
                Ok(PutComplianceResponse { outcome: Some(outcome), index })
            }
            Some((_, UploadOutcome::Refused(refusal))) => Err(refusal.into()),
            None => Err(unexpected(&Reply::ComplianceNoted(Vec::new()))),
        }
    }

    /// Keeps a batch; each of it is answered by itself.
    async fn keep_documents(
        &self,
        caller: &Caller,
        documents: Vec<String>,
    ) -> Result<(Vec<proto::UploadOutcome>, u64), Status> {
        if !(1..=COMPLIANCE_BATCH_MAX).contains(&documents.len()) {
            let expected = format!("1 to {COMPLIANCE_BATCH_MAX} in a batch, not {}", documents.len());
            return Err(Invalid::new("documents", expected).into());
        }
        let mut uploads = Vec::with_capacity(documents.len());
        let mut answers: Vec<Option<proto::UploadOutcome>> = vec![None; documents.len()];
        for (place, document) in documents.iter().enumerate() {
            match MachineReport::from_json(document) {
                Ok(report) => match check_may(caller, &report) {
                    Ok(()) => uploads.push(Upload { place, report }),
                    Err(refusal) => answers[place] = Some(refused(report.machine.to_string(), refusal)),
                },
                Err(invalid) => answers[place] = Some(refused(String::new(), invalid.into())),
            }
        }
        let mut outcomes = vec![None; documents.len()];
        let index = self.bring(caller, uploads, &mut outcomes).await?;
        let answers = answers.into_iter().zip(outcomes).map(|(answer, outcome)| match (answer, outcome) {
            (Some(answer), _) => Ok(answer),
            (None, Some((machine, UploadOutcome::Taken { merged, rotation_owed_since }))) => {
                Ok(taken(machine, merged, rotation_owed_since.map(|since| since.0)))
            }
            (None, Some((machine, UploadOutcome::Refused(refusal)))) => Ok(refused(machine, refusal)),
            (None, None) => Err(unexpected(&Reply::ComplianceNoted(Vec::new()))),
        });
        Ok((answers.collect::<Result<_, _>>()?, index))
    }

    /// Brings uploads through the log, and notes what became of each. Answers the entry after which all of it is kept.
    async fn bring(
        &self,
        caller: &Caller,
        uploads: Vec<Upload>,
        outcomes: &mut Outcomes,
    ) -> Result<u64, Status> {
        let node = self.node.clone();
        let (same, mut changed) = on_own_thread(move || {
            let view = node.view()?;
            let (mut same, mut changed) = (Vec::new(), Vec::new());
            for upload in uploads {
                let digest = upload.report.digest();
                if lookup::said_last(&view, &upload.report.machine, &digest)? {
                    same.push((upload, digest));
                } else {
                    changed.push(upload);
                }
            }
            Ok((same, changed))
        })
        .await?;
        let mut index = 0;
        if !same.is_empty() {
            let contact = |(upload, digest): &(Upload, [u8; 32])| {
                let MachineReport { machine, at, .. } = &upload.report;
                Contact { machine: machine.clone(), at: *at, digest: *digest }
            };
            let contacts = same.iter().map(contact).collect();
            let note = Action::NoteContact(NoteContact { contacts });
            let noted = self.noted(caller, note, same.len(), &mut index).await?;
            for ((upload, _), outcome) in same.into_iter().zip(noted) {
                match outcome {
                    // Something else came in meanwhile: now the whole of it.
                    UploadOutcome::Taken { merged: Merged::Changed, .. } => changed.push(upload),
                    outcome => outcomes[upload.place] = Some((upload.report.machine.to_string(), outcome)),
                }
            }
        }
        if !changed.is_empty() {
            let reports = changed.iter().map(|upload| upload.report.clone()).collect();
            let report = Action::ReportCompliance(ReportCompliance { reports });
            let noted = self.noted(caller, report, changed.len(), &mut index).await?;
            for (upload, outcome) in changed.into_iter().zip(noted) {
                outcomes[upload.place] = Some((upload.report.machine.to_string(), outcome));
            }
        }
        Ok(index)
    }

    async fn noted(
        &self,
        caller: &Caller,
        action: Action,
        expected: usize,
        index: &mut u64,
    ) -> Result<Vec<UploadOutcome>, Status> {
        let command = Command {
            // What is kept answers for itself: nothing is remembered by request.
            request: RequestId(Uuid::new_v4()),
            at: now(),
            by: caller.identity.clone(),
            source: caller.source.clone(),
            action,
        };
        let committed = self.node.propose(&command).await?;
        *index = committed.position.index.max(*index);
        match committed.reply {
            Reply::ComplianceNoted(outcomes) if outcomes.len() == expected => Ok(outcomes),
            Reply::Refused(refusal) => Err(refusal.into()),
            other => Err(unexpected(&other)),
        }
    }
}

/// Of each upload by its place: whose it is, and what became of it.
type Outcomes = Vec<Option<(String, UploadOutcome)>>;

fn check_may(caller: &Caller, report: &MachineReport) -> Result<(), Refusal> {
    if may_report(&caller.identity, &report.machine) {
        return Ok(());
    }
    let (role, name, machine) = (caller.identity.role, &caller.identity.name, &report.machine);
    Err(Refusal::Denied(format!("{role} {name} may not report the compliance of {machine}")))
}

fn taken(machine: String, merged: Merged, rotation_owed_since_ms: Option<u64>) -> proto::UploadOutcome {
    let (outcome, state_changed, clock_ahead) = match merged {
        Merged::Newest { state_changed, clock_ahead } => ("newest", state_changed, clock_ahead),
        Merged::Repeated => ("repeated", false, false),
        Merged::Superseded | Merged::Changed => ("superseded", false, false),
    };
    proto::UploadOutcome {
        machine,
        outcome: outcome.to_owned(),
        state_changed,
        clock_ahead,
        rotation_owed_since_ms,
        ..Default::default()
    }
}

fn refused(machine: String, refusal: Refusal) -> proto::UploadOutcome {
    let field = match &refusal {
        Refusal::Invalid(invalid) => invalid.field.clone(),
        _ => String::new(),
    };
    let error = refusal.to_string();
    proto::UploadOutcome { machine, outcome: "refused".to_owned(), field, error, ..Default::default() }
}

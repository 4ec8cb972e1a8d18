//! Streams that break off, by script.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::stream;
use tokio::net::TcpListener;
use tonic::Request;
use tonic::service::Routes;

use super::super::tests::{Ca, serve_routes};
use super::super::{ClientOptions, Preference};
use super::*;
use crate::escrow::ids::Role;
use crate::escrow::secrets::SecretKind;
use crate::proto::escrow_service_server::{EscrowService, EscrowServiceServer};
use crate::proto::{KeptRecord, RefusedRecord};
use crate::secret::Secret;

/// How a stream ends.
#[derive(Debug, Clone)]
enum Script {
    /// Answers so many records, one by one, and breaks off as if all were well.
    Silent(usize),
    /// Answers so many and then this.
    Refused(usize, Code),
    /// Answers everything, by messages.
    Whole,
}

/// A node whose streams go by the script, one after the other; the last goes on.
#[derive(Clone)]
struct Scripted {
    scripts: Arc<Mutex<Vec<Script>>>,
    /// The request ids of each stream.
    seen: Arc<Mutex<Vec<Vec<String>>>>,
}

fn answer_to(record: &crate::proto::EscrowRequest) -> EscrowManyAnswer {
    let answer = if record.machine == "PC-13" {
        let field = "machine".to_owned();
        Answer::Refused(RefusedRecord { code: Code::InvalidArgument.into(), field, message: "no".to_owned() })
    } else {
        let (key_id, fingerprint) = (Uuid::new_v4().to_string(), "ab".repeat(32));
        Answer::Kept(KeptRecord { key_id, fingerprint, index: 7, ..KeptRecord::default() })
    };
    EscrowManyAnswer { answer: Some(answer) }
}

#[tonic::async_trait]
impl EscrowService for Scripted {
    type EscrowManyStream = Pin<Box<dyn Stream<Item = Result<EscrowManyResponse, Status>> + Send>>;

    async fn escrow_many(
        &self,
        request: Request<Streaming<EscrowManyRequest>>,
    ) -> Result<Response<Self::EscrowManyStream>, Status> {
        let mut scripts = self.scripts.lock().unwrap();
        let script = if scripts.len() > 1 { scripts.remove(0) } else { scripts[0].clone() };
        let number = {
            let mut seen = self.seen.lock().unwrap();
            seen.push(Vec::new());
            seen.len() - 1
        };
        let (seen, mut records) = (self.seen.clone(), request.into_inner());
        let (answers, answered) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut left = match script {
                Script::Silent(count) | Script::Refused(count, _) => count,
                Script::Whole => usize::MAX,
            };
            while let Ok(Some(message)) = records.message().await {
                let ids = message.records.iter().map(|record| record.request_id.clone());
                seen.lock().unwrap()[number].extend(ids);
                let known: Vec<_> = message.records.iter().take(left).map(answer_to).collect();
                left -= known.len();
                if !known.is_empty() {
                    let _ = answers.send(Ok(EscrowManyResponse { answers: known })).await;
                }
                if left == 0 {
                    if let Script::Refused(_, code) = script {
                        let _ = answers.send(Err(Status::new(code, "said the node"))).await;
                    }
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answered))))
    }

    async fn import_machines(
        &self,
        _: Request<crate::proto::ImportMachinesRequest>,
    ) -> Result<Response<crate::proto::ImportMachinesResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn escrow(
        &self,
        _: Request<crate::proto::EscrowRequest>,
    ) -> Result<Response<crate::proto::EscrowResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn rotation(
        &self,
        _: Request<crate::proto::RotationRequest>,
    ) -> Result<Response<crate::proto::RotationResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn confirm_key(
        &self,
        _: Request<crate::proto::ConfirmKeyRequest>,
    ) -> Result<Response<crate::proto::ConfirmKeyResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }
}

fn deposit(n: usize) -> Deposit {
    Deposit {
        machine: format!("PC-{n}").parse().unwrap(),
        volume: "C:".parse().unwrap(),
        kind: SecretKind::Generic,
        key_id: None,
        secret: Secret::from("not shown".to_owned()),
        package: None,
        user: None,
        pending: false,
    }
}

/// What came of `count` records: the error, if any, those that were answered, and what each stream saw.
async fn send(scripts: Vec<Script>, count: usize) -> (Option<ClientError>, Vec<usize>, Vec<Vec<String>>) {
    let ca = Ca::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let node = Scripted { scripts: Arc::new(Mutex::new(scripts)), seen: Arc::default() };
    let routes = Routes::new(EscrowServiceServer::new(node.clone()));
    let serving = tokio::spawn(serve_routes(listener, ca.tls(Role::Node, "1"), routes));
    let timeout = Duration::from_secs(2);
    let options = ClientOptions { timeout, preference: Preference::AsGiven, ..ClientOptions::default() };
    let endpoints = vec![address.to_string().parse().unwrap()];
    let client = Client::new(endpoints, ca.tls(Role::Importer, "import"), options).unwrap();
    let mut answered = Vec::new();
    // Never more ahead of the answers than is said.
    let (given, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let deposits = stream::iter(0..count).map(|n| {
        given.fetch_add(1, Ordering::SeqCst);
        (n, deposit(n))
    });
    let ended = client
        .escrow_many(deposits, |n, answer| {
            let ahead = given.load(Ordering::SeqCst) - taken.fetch_add(1, Ordering::SeqCst);
            assert!(ahead <= UNANSWERED_MAX, "{ahead} ahead");
            assert_eq!(matches!(answer, BulkAnswer::Refused(_)), n == 13);
            answered.push(n);
        })
        .await;
    serving.abort();
    let seen = node.seen.lock().unwrap().clone();
    (ended.err(), answered, seen)
}

#[tokio::test]
async fn every_record_is_answered_once_and_in_order_wherever_streams_break() {
    for scripts in [
        vec![Script::Whole],
        vec![Script::Silent(1), Script::Silent(70), Script::Whole],
        vec![Script::Refused(100, Code::Unavailable), Script::Silent(64), Script::Silent(1), Script::Whole],
        // Not one answer: the same endpoint is asked again, as for any call.
        vec![Script::Refused(0, Code::Unavailable), Script::Silent(0), Script::Whole],
    ] {
        let streams = scripts.len();
        let (error, answered, seen) = send(scripts.clone(), 5_000).await;
        assert!(error.is_none(), "{scripts:?}: {error:?}");
        assert_eq!(answered, (0..5_000).collect::<Vec<_>>(), "{scripts:?}");
        assert_eq!(seen.len(), streams);
        // What is sent again is what had no answer, from its first record on, under the same ids.
        let mut first = 0;
        for ((script, stream), next) in scripts.iter().zip(&seen).zip(seen.iter().skip(1)) {
            let (Script::Silent(count) | Script::Refused(count, _)) = script else { continue };
            first += count;
            assert_eq!(stream.get(*count).unwrap_or(&next[0]), &next[0], "record {first}");
        }
    }
}

#[tokio::test]
async fn a_definite_answer_ends_it_and_what_was_answered_stands() {
    let (error, answered, seen) = send(vec![Script::Refused(66, Code::PermissionDenied)], 5_000).await;
    assert!(matches!(error, Some(ClientError::Denied(_))), "{error:?}");
    assert_eq!((answered.len(), seen.len()), (66, 1));
    assert!(error.unwrap().request_id().is_some());

    let (error, answered, _) = send(vec![Script::Refused(0, Code::Unavailable)], 10).await;
    assert!(matches!(error, Some(ClientError::Unavailable { .. })), "{error:?}");
    assert_eq!(answered, [0; 0]);
}

#[tokio::test]
async fn nothing_to_send_asks_nobody() {
    let (error, answered, seen) = send(vec![Script::Whole], 0).await;
    assert!(error.is_none() && answered.is_empty() && seen.is_empty());
}

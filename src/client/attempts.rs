//! The retry loop: which endpoint is asked next, and when to stop asking.

use std::convert::Infallible;
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::connection::{DialError, dial, refusal, round_trip};
use super::endpoint::{Endpoint, EndpointAddress, Established};
use super::error::{ClientError, Trouble, is_temporary};
use super::{Budget, ClientOptions, Preference, bounded};
use crate::proto;
use crate::proto::cluster_service_client::ClusterServiceClient;
use crate::request_id::TraceId;
use crate::rpc::status::DEGRADED_KEY;
use crate::tls::Tls;

/// How long one endpoint may take to answer one attempt. A node that hangs (paused, partitioned behind its
/// switch) costs a call this much and no more; a node that is electing a leader gets to finish.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);
/// What one endpoint gets at least, if that leaves half of the time for the others: a survivor without a quorum waits two
/// seconds for one before it reveals by itself.
const ATTEMPT_MIN: Duration = Duration::from_secs(3);
/// The first wait after a round in which no endpoint answered.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// The longest wait between two rounds.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How long the first status call may take that tells which zone each node stands in.
const ZONE_TIMEOUT: Duration = Duration::from_secs(2);

/// The endpoints of one client and its connections to them.
pub(super) struct Pool {
    tls: Tls,
    endpoints: Vec<Endpoint>,
    options: ClientOptions,
    /// Set once the endpoints were measured, before the first call.
    surveyed: OnceCell<()>,
    /// Numbers connections.
    connections: AtomicU64,
}

/// What one attempt at one endpoint came to.
enum Outcome<T> {
    /// The answer.
    Answered(T),
    /// Another answer is not to be had anywhere.
    Definite(ClientError),
    /// The node failed by a fault of its own, a damaged row for one: the next endpoint may do better.
    Failed(ClientError),
    /// No, as far as a node without a quorum knows: another one may know better.
    Provisional(ClientError),
    /// Not now, or not here: the next endpoint may answer.
    Next { what: String, reached: bool },
    /// Nothing was heard: the next endpoint may answer.
    Silent { waited: Duration, reached: bool },
    /// One end did not accept the other's certificate. Another endpoint may, waiting does not help.
    Refused { reason: String, source: Box<dyn Error + Send + Sync> },
}

impl Pool {
    pub(super) fn new(endpoints: Vec<EndpointAddress>, tls: Tls, options: ClientOptions) -> Self {
        let endpoints = endpoints.into_iter().map(Endpoint::new).collect();
        Self { tls, endpoints, options, surveyed: OnceCell::new(), connections: AtomicU64::new(0) }
    }

    /// How many endpoints there are.
    pub(super) fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    /// Tries `operation` on one endpoint after the other until one gives a definite answer or time is up.
    pub(super) async fn call<T, F, Answering>(&self, operation: F) -> Result<T, ClientError>
    where
        F: Fn(Channel, Budget) -> Answering,
        Answering: Future<Output = Result<Response<T>, Status>>,
    {
        self.call_as(TraceId::draw(), operation).await
    }

    /// As [`Pool::call`], with a request id of the caller's.
    pub(super) async fn call_as<T, F, Answering>(
        &self,
        trace: TraceId,
        operation: F,
    ) -> Result<T, ClientError>
    where
        F: Fn(Channel, Budget) -> Answering,
        Answering: Future<Output = Result<Response<T>, Status>>,
    {
        self.call_from(trace, operation).await.map(|(answer, _)| answer)
    }

    /// As [`Pool::call_as`], for an answer that only begins: says also whose it is, for [`Begun::broke_off`].
    pub(super) async fn call_from<T, F, Answering>(
        &self,
        trace: TraceId,
        operation: F,
    ) -> Result<(T, Begun<'_>), ClientError>
    where
        F: Fn(Channel, Budget) -> Answering,
        Answering: Future<Output = Result<Response<T>, Status>>,
    {
        let operation = |channel, time| operation(channel, Budget { time, trace: trace.clone() });
        self.call_until_answered(operation).await.map_err(|error| error.with_request_id(&trace))
    }

    async fn call_until_answered<T, F, Answering>(&self, operation: F) -> Result<(T, Begun<'_>), ClientError>
    where
        F: Fn(Channel, Duration) -> Answering,
        Answering: Future<Output = Result<Response<T>, Status>>,
    {
        let started = Instant::now();
        let deadline = started + self.options.timeout;
        self.survey_once(deadline).await;
        let mut tried = Tried::default();
        let mut backoff = BACKOFF_FIRST;
        loop {
            let refused = match self.round(&operation, deadline, &mut tried).await {
                Ok(answer) => return Ok(answer),
                Err(RoundEnd::Definite(error)) => return Err(error),
                Err(RoundEnd::Tried { refused }) => refused,
            };
            // A certificate is not accepted more readily for being shown again.
            if let Some(error) = refused {
                return Err(error);
            }
            let next_round = Instant::now() + jittered(backoff);
            if next_round >= deadline {
                let Tried { troubles, rounds, reached } = tried;
                return Err(ClientError::Unavailable {
                    waited: started.elapsed(),
                    rounds,
                    reached,
                    request_id: None,
                    troubles,
                });
            }
            sleep_until(next_round).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Asks every endpoint once, the one that ranks first before the others.
    async fn round<T, F, Answering>(
        &self,
        operation: &F,
        deadline: Instant,
        tried: &mut Tried,
    ) -> Result<(T, Begun<'_>), RoundEnd>
    where
        F: Fn(Channel, Duration) -> Answering,
        Answering: Future<Output = Result<Response<T>, Status>>,
    {
        tried.rounds += 1;
        let (mut refused, mut provisional, mut failed) = (None, None, Vec::new());
        let ranked = self.ranked();
        for (endpoint, left) in ranked.iter().zip((1..=ranked.len()).rev()) {
            // A share of what is left for each endpoint: one that hangs leaves time to ask the others.
            let remaining = deadline.saturating_duration_since(Instant::now());
            let share = remaining / u32::try_from(left).unwrap_or(u32::MAX);
            let budget = share.max(ATTEMPT_MIN.min(remaining / 2)).min(ATTEMPT_TIMEOUT);
            if budget.is_zero() {
                break;
            }
            let what = match self.attempt(endpoint, operation, budget).await {
                Outcome::Answered(answer) => {
                    endpoint.answered();
                    return Ok((answer, Begun(endpoint)));
                }
                Outcome::Definite(error) => return Err(RoundEnd::Definite(error)),
                Outcome::Provisional(error) => {
                    endpoint.answered();
                    provisional.get_or_insert(error);
                    continue;
                }
                Outcome::Failed(error) => {
                    tried.reached = true;
                    let what = error.to_string();
                    failed.push(error);
                    what
                }
                Outcome::Next { what, reached } => {
                    tried.reached |= reached;
                    what
                }
                Outcome::Silent { waited, reached } => {
                    tried.reached |= reached;
                    if tried.knows(endpoint.address()) {
                        // Silence says less than what was heard before, or than the longer silence of an earlier round.
                        endpoint.failed(Instant::now());
                        continue;
                    }
                    silence(waited)
                }
                Outcome::Refused { reason, source } => {
                    let what = reason.clone();
                    let endpoint = endpoint.address().to_owned();
                    refused = Some(ClientError::Refused { endpoint, reason, source });
                    what
                }
            };
            endpoint.failed(Instant::now());
            tried.note(endpoint.address(), what);
        }
        // A fault is the answer only if every endpoint has one: another that is away now may not.
        let all_failed = failed.len() == ranked.len();
        match provisional.or_else(|| failed.into_iter().next().filter(|_| all_failed)) {
            Some(error) => Err(RoundEnd::Definite(error)),
            None => Err(RoundEnd::Tried { refused }),
        }
    }

    /// Asks one endpoint, for at most `budget`.
    async fn attempt<T, F, Answering>(
        &self,
        endpoint: &Endpoint,
        operation: &F,
        budget: Duration,
    ) -> Outcome<T>
    where
        F: Fn(Channel, Duration) -> Answering,
        Answering: Future<Output = Result<Response<T>, Status>>,
    {
        let give_up = Instant::now() + budget;
        let established = match tokio::time::timeout_at(give_up, self.connection(endpoint)).await {
            Ok(Ok(established)) => established,
            Ok(Err(error)) => return Outcome::of_dialling(error),
            Err(_) => return Outcome::Silent { waited: budget, reached: false },
        };
        match tokio::time::timeout_at(give_up, operation(established.channel, budget)).await {
            Ok(Ok(response)) => Outcome::Answered(response.into_inner()),
            Ok(Err(status)) => {
                if made_here(&status) {
                    endpoint.drop_connection(established.number).await;
                }
                if is_timeout(&status) {
                    return Outcome::Silent { waited: budget, reached: true };
                }
                Outcome::of_status(status, endpoint.address())
            }
            // The connection may be dead without knowing it: the next call dials anew.
            Err(_) => {
                endpoint.drop_connection(established.number).await;
                Outcome::Silent { waited: budget, reached: true }
            }
        }
    }

    /// The connection to `endpoint`, made if there is none that counts.
    async fn connection(&self, endpoint: &Endpoint) -> Result<Established, DialError> {
        let mut slot = endpoint.channel.lock().await;
        if let Some(established) = &*slot
            && established.is_current(&self.tls)
        {
            return Ok(established.clone());
        }
        // Read first: if the files change meanwhile, one connection too many is made.
        let generation = self.tls.generation();
        // Boxed: a handshake's state is large, and every call would carry room for it.
        let (channel, server) = Box::pin(dial(endpoint.address(), &self.tls)).await?;
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        Ok(slot.insert(Established { channel, number, generation, server }).clone())
    }

    /// The endpoints in the order in which to ask them now.
    fn ranked(&self) -> Vec<&Endpoint> {
        let now = Instant::now();
        let zone = self.options.zone.as_deref();
        let mut endpoints: Vec<_> = self.endpoints.iter().collect();
        endpoints.sort_by_cached_key(|endpoint| endpoint.rank(zone, now));
        endpoints
    }

    /// Measures the endpoints before the first call, and learns their zones if the caller has one.
    async fn survey_once(&self, deadline: Instant) {
        if self.options.preference == Preference::AsGiven || self.endpoints.len() < 2 {
            return;
        }
        let survey = async {
            join_all(self.endpoints.iter().map(|endpoint| async {
                if let Some(round_trip) = round_trip(endpoint.address()).await {
                    endpoint.measured(round_trip);
                }
            }))
            .await;
            if self.options.zone.is_some() {
                let budget = deadline.saturating_duration_since(Instant::now()).min(ZONE_TIMEOUT);
                // Without an answer nobody's zone is known, and the round-trip decides.
                let _ = timeout(budget, self.learn_zones()).await;
            }
        };
        self.surveyed.get_or_init(|| survey).await;
    }

    /// Asks the first endpoint that answers for the zones of all.
    async fn learn_zones(&self) {
        for endpoint in self.ranked() {
            let Ok(established) = self.connection(endpoint).await else { continue };
            let budget = Budget { time: ZONE_TIMEOUT, trace: TraceId::draw() };
            let request = bounded(proto::StatusRequest {}, budget);
            let Ok(response) = ClusterServiceClient::new(established.channel).status(request).await else {
                continue;
            };
            let status = response.into_inner();
            for node in &status.nodes {
                let reached_as = |known: &&Endpoint| {
                    known.address() == node.api_address
                        || (node.id == status.answered_by && known.address() == endpoint.address())
                };
                self.endpoints.iter().filter(reached_as).for_each(|known| known.stands_in(&node.zone));
            }
            return;
        }
    }
}

/// The endpoint that has begun to answer.
pub(super) struct Begun<'a>(&'a Endpoint);

impl Begun<'_> {
    pub(super) fn address(&self) -> &str {
        self.0.address()
    }

    /// What is said instead of the rest of the answer: others are asked first for a while. Answers what is to be told of
    /// it, should there be no other.
    ///
    /// # Errors
    /// The [`ClientError`] that it amounts to, if another endpoint would say the same.
    pub(super) fn broke_off(self, status: Status) -> Result<Trouble, ClientError> {
        let Self(endpoint) = self;
        let what = match Outcome::<Infallible>::of_status(status, endpoint.address()) {
            Outcome::Answered(never) => match never {},
            Outcome::Silent { waited, .. } => silence(waited),
            Outcome::Definite(error) | Outcome::Provisional(error) => return Err(error),
            Outcome::Failed(error) => error.to_string(),
            Outcome::Next { what, .. } => what,
            Outcome::Refused { reason, .. } => reason,
        };
        endpoint.failed(Instant::now());
        Ok(Trouble::new(endpoint.address(), what))
    }
}

/// What was tried so far, to be told if nothing comes of it.
#[derive(Default)]
struct Tried {
    /// The last trouble of each endpoint.
    troubles: Vec<Trouble>,
    rounds: u32,
    /// Whether there was a connection to any of them.
    reached: bool,
}

impl Tried {
    fn knows(&self, endpoint: &str) -> bool {
        self.troubles.iter().any(|trouble| trouble.endpoint == endpoint)
    }

    fn note(&mut self, endpoint: &str, what: String) {
        match self.troubles.iter_mut().find(|trouble| trouble.endpoint == endpoint) {
            Some(trouble) => trouble.what = what,
            None => self.troubles.push(Trouble::new(endpoint, what)),
        }
    }
}

/// How a round ended without an answer.
enum RoundEnd {
    Definite(ClientError),
    Tried { refused: Option<ClientError> },
}

impl<T> Outcome<T> {
    fn of_dialling(error: DialError) -> Self {
        match refusal(&error) {
            Some(reason) => Self::Refused { reason, source: Box::new(error) },
            None => Self::Next { what: error.to_string(), reached: false },
        }
    }

    fn of_status(status: Status, endpoint: &str) -> Self {
        match status.source() {
            Some(source) => match refusal(source) {
                Some(reason) => Self::Refused { reason, source: Box::new(status) },
                None => {
                    Self::Next { what: format!("the connection broke: {}", innermost(source)), reached: true }
                }
            },
            None if is_temporary(status.code()) => {
                Self::Next { what: status.message().to_owned(), reached: true }
            }
            None if status.metadata().contains_key(DEGRADED_KEY) => {
                Self::Provisional(ClientError::from_status(status, endpoint))
            }
            None if matches!(status.code(), Code::DataLoss | Code::Internal) => {
                Self::Failed(ClientError::from_status(status, endpoint))
            }
            None => Self::Definite(ClientError::from_status(status, endpoint)),
        }
    }
}

fn silence(waited: Duration) -> String {
    format!("no answer within {:.1} s", waited.as_secs_f64())
}

/// Whether a status is about the connection and not from the node: only one made on this side has a source.
pub(super) fn made_here(status: &Status) -> bool {
    status.source().is_some()
}

/// Whether this side stopped waiting: the request carries its deadline, and the channel may see its end before we do.
fn is_timeout(status: &Status) -> bool {
    status.source().is_some_and(|source| innermost(source).is::<tonic::TimeoutExpired>())
}

fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost
}

/// Between half of `pause` and all of it, so that clients that failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0; 4];
    // Without randomness there is no jitter, which is no reason to fail.
    let _ = aws_lc_rs::rand::fill(&mut random);
    let share = f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX);
    pause.mul_f64(0.5 + share / 2.0)
}

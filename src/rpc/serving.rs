//! Serving streams: an import, an upload of many documents, a report, a reading of the audit trail.
//!
//! A stream outlives the moment in which it was admitted, and takes as long as whoever is at the other end. So there are
//! few places for each kind ([`Places`]), and a [`Serving`] keeps one only while both ends go on: not for a reader who
//! takes nothing, not for a sender who sends nothing, and not until the connection ends, which either may keep open for
//! ever. Why a stream ended is told behind the last of its answers also to who was not taking them.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, future, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use super::Context;
use super::guard::{Connection, stopping};
use super::status::{HINT_KEY, with};
use crate::tls::PeerCertificate;

/// Longest that a sender may send nothing: a place is not kept for somebody who comes back with a new stream anyway.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest that a reader may leave an answer waiting.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Answers as they go out.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Room for streams of one kind. Clones share it.
#[derive(Debug, Clone)]
pub struct Places {
    of: &'static str,
    limit: usize,
    left: Arc<Semaphore>,
}

impl Places {
    /// Room for `limit` streams of `of`, which is what they are called in the plural.
    pub fn new(of: &'static str, limit: usize) -> Self {
        Self { of, limit, left: Arc::new(Semaphore::new(limit)) }
    }

    /// A place, given back when it is dropped.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if there is none: a client that knows other nodes asks them.
    pub(super) fn take(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.left.clone().try_acquire_owned().map_err(|_| {
            let Self { of, limit, .. } = self;
            let full = Status::resource_exhausted(format!("{limit} {of} are served here already"));
            with(full, HINT_KEY, "try again in a while, or ask another node")
        })
    }
}

/// A stream while it is served. The place goes with it.
pub(super) struct Serving<T> {
    context: Context,
    /// Whose it is.
    certificate: Option<PeerCertificate>,
    outlet: Outlet<T>,
}

impl<T: Send + 'static> Serving<T> {
    /// Serves what was asked by `request`, which was admitted, and has `place`. No more than `ahead` answers wait to be
    /// taken.
    pub(super) fn begin<R>(
        context: &Context,
        request: &Request<R>,
        place: OwnedSemaphorePermit,
        ahead: usize,
    ) -> (Self, Answers<T>) {
        let connection = request.extensions().get::<Connection>();
        let certificate = connection.map(|connection| connection.certificate.clone());
        let (outlet, answers) = Outlet::open(place, ahead, STALL_TIMEOUT);
        (Self { context: context.clone(), certificate, outlet }, answers)
    }

    /// Whether it may go on. Also while this node is stopping: what is under way is finished.
    ///
    /// # Errors
    /// As [`Context::may_go_on`].
    pub(super) fn check(&self) -> Result<(), Status> {
        self.context.may_go_on(self.certificate.as_ref())
    }

    /// The next message of who sends; `None` behind the last. May be dropped and called again, which begins the wait anew.
    ///
    /// # Errors
    /// What ended the stream; `UNAVAILABLE` if nothing comes for [`IDLE_TIMEOUT`], or once this node is stopping.
    pub(super) async fn next<M>(&self, messages: &mut Streaming<M>) -> Result<Option<M>, Status> {
        tokio::select! {
            biased;
            () = self.context.draining.cancelled() => Err(stopping()),
            message = timeout(IDLE_TIMEOUT, messages.message()) => message.unwrap_or_else(|_| {
                let seconds = IDLE_TIMEOUT.as_secs();
                Err(Status::unavailable(format!("nothing was sent for {seconds} s; begin a new stream")))
            }),
        }
    }

    /// Sends an answer.
    ///
    /// # Errors
    /// `CANCELLED` if nobody reads them any more, `UNAVAILABLE` if this one is not taken for [`STALL_TIMEOUT`].
    pub(super) async fn send(&self, answer: T) -> Result<(), Status> {
        self.outlet.send(answer).await
    }

    /// Whether nobody reads the answers any more.
    pub(super) fn is_left(&self) -> bool {
        self.outlet.answers.is_closed()
    }

    /// Waits until nobody reads the answers any more.
    pub(super) async fn left(&self) {
        self.outlet.answers.closed().await;
    }

    /// Ends it, and says why behind the last answer. Waits for nobody.
    pub(super) fn end(self, why: Status) {
        self.outlet.end(why);
    }
}

/// Where answers go out.
struct Outlet<T> {
    answers: mpsc::Sender<T>,
    /// What is said behind the last answer.
    why: Arc<OnceLock<Status>>,
    /// Longest that an answer may wait to be taken.
    patience: Duration,
    _place: OwnedSemaphorePermit,
}

impl<T: Send + 'static> Outlet<T> {
    fn open(place: OwnedSemaphorePermit, ahead: usize, patience: Duration) -> (Self, Answers<T>) {
        let (answers, taken) = mpsc::channel(ahead);
        let why = Arc::new(OnceLock::new());
        let last = why.clone();
        // Looked at when everything before it was taken.
        let last = stream::once(async move { last.get().cloned().map(Err) }).filter_map(future::ready);
        let stream = ReceiverStream::new(taken).map(Ok).chain(last);
        (Self { answers, why, patience, _place: place }, Box::pin(stream))
    }

    async fn send(&self, answer: T) -> Result<(), Status> {
        match timeout(self.patience, self.answers.send(answer)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("nobody reads the answers any more")),
            Err(_) => Err(stalled(self.patience)),
        }
    }

    fn end(self, why: Status) {
        // Only said once: nothing ends twice.
        let _ = self.why.set(why);
    }
}

fn stalled(waited: Duration) -> Status {
    let why = format!("the node ended it: its answers were not read for {} s", waited.as_secs());
    with(
        Status::unavailable(why),
        HINT_KEY,
        "read them as they come, into a file for one, and look at them there",
    )
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn who_takes_no_answers_loses_the_place_in_time_and_is_told_why_behind_what_was_sent() {
        let places = Places::new("streams", 1);
        let patience = Duration::from_millis(20);
        let (outlet, mut answers) = Outlet::open(places.take().unwrap(), 2, patience);
        assert_eq!(places.take().unwrap_err().code(), Code::ResourceExhausted);
        outlet.send(1).await.unwrap();
        outlet.send(2).await.unwrap();
        let why = outlet.send(3).await.unwrap_err();
        assert_eq!(why.code(), Code::Unavailable);
        outlet.end(why);
        drop(places.take().expect("there is room again, although the answers were not taken"));
        for expected in [1, 2] {
            assert_eq!(answers.next().await.unwrap().unwrap(), expected);
        }
        let told = answers.next().await.unwrap().unwrap_err();
        assert!(told.message().contains("not read for 0 s"), "{told}");
        assert!(answers.next().await.is_none());
    }

    #[tokio::test]
    async fn what_ends_well_ends_without_a_word_and_who_left_is_noticed() {
        let places = Places::new("streams", 2);
        let (outlet, mut answers) = Outlet::open(places.take().unwrap(), 1, STALL_TIMEOUT);
        outlet.send(1).await.unwrap();
        drop(outlet);
        assert_eq!(answers.next().await.unwrap().unwrap(), 1);
        assert!(answers.next().await.is_none());

        let (outlet, answers) = Outlet::open(places.take().unwrap(), 1, STALL_TIMEOUT);
        drop(answers);
        assert_eq!(outlet.send(1).await.unwrap_err().code(), Code::Cancelled);
        outlet.answers.closed().await;
    }
}

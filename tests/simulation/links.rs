//! The network between simulated nodes: what is late, lost, cut or delivered twice.

use std::collections::BTreeSet;
use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime as _;
use openraft_rt_sim::SimRuntime;
use strongroom::escrow::ids::NodeId;
use tokio::sync::oneshot;

use crate::host::Life;
use crate::types::Raft;
use crate::world::World;

/// The shortest that a message is under way.
const SHORTEST_US: u64 = 200;

/// How the network is at the moment.
#[derive(Debug, Clone, Default)]
pub struct Links {
    /// By who speaks and to whom.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    /// Of a thousand messages, how many are lost.
    pub lost: u64,
    /// Of a thousand messages, how many come twice.
    pub twice: u64,
    /// How late a message may be, in microseconds. Those that are later than the next are overtaken.
    pub late_us: u64,
}

/// A message cannot be delivered, and the sender notices: nobody listens there, or it has crashed itself.
#[derive(Debug, Clone, Copy)]
pub struct Refused;

impl World {
    /// How long a message takes from one node to another; `None` if it does not arrive.
    pub fn leg(&self, from: NodeId, to: NodeId) -> Option<Duration> {
        let links = self.links();
        if links.cut.contains(&(from, to)) || self.draw(1_000) < links.lost {
            self.count("messages lost");
            return None;
        }
        // Most are early, few are late.
        let late = if self.draw(4) == 0 { links.late_us } else { links.late_us / 8 };
        Some(Duration::from_micros(SHORTEST_US + self.draw(late + 1)))
    }

    fn comes_again(&self) -> Option<Duration> {
        let (twice, late) = (self.links().twice, self.links().late_us);
        (self.draw(1_000) < twice).then(|| Duration::from_micros(self.draw(8 * late + 1)))
    }

    /// Has `work` done at node `to`, once, or twice if the network delivers it so, and brings the answer of the first time
    /// back. Never resolves if one of the two is lost: whoever calls has a deadline.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn call<T, F, Fut>(
        self: &Arc<Self>,
        from: &Life,
        to: NodeId,
        what: &'static str,
        mut work: F,
    ) -> Result<T, Refused>
    where
        T: Send + 'static,
        F: FnMut(Raft) -> Fut + Send + 'static,
        Fut: Future<Output = T> + Send,
    {
        from.check().map_err(|_| Refused)?;
        let from = from.host.id;
        let there = self.leg(from, to);
        self.event(|| format!("{from} -> {to} {what} {there:?}"));
        let Some(there) = there else { return pending().await };
        SimRuntime::sleep(there).await;
        let target = self.life_of(to).ok_or(Refused)?;
        let raft = target.raft().ok_or(Refused)?;
        let (tell, told) = oneshot::channel();
        let (world, again) = (self.clone(), self.comes_again());
        SimRuntime::spawn(async move {
            let answer = work(raft.clone()).await;
            if let Some(back) = world.leg(to, from).filter(|_| target.is_on()) {
                SimRuntime::sleep(back).await;
                // If nobody waits any more, nobody hears it.
                drop(tell.send(answer));
            } else {
                drop(tell);
            }
            if let Some(later) = again {
                SimRuntime::sleep(later).await;
                world.count("messages delivered twice");
                world.event(|| format!("{from} -> {to} {what} again"));
                drop(work(raft).await);
            }
        });
        match told.await {
            Ok(answer) => Ok(answer),
            Err(_) => pending().await,
        }
    }
}

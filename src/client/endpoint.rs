//! One endpoint: its address, the connection to it, and how it ranks among the others.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::Channel;

use crate::escrow::ids::Invalid;
use crate::tls::{PeerCertificate, Tls};

/// How long an endpoint that failed ranks behind those that did not.
const REST_AFTER_FAILURE: Duration = Duration::from_secs(5);

/// Host and port of a node's API: `host:port`, `192.0.2.1:7420` or `[2001:db8::1]:7420`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointAddress(String);

impl EndpointAddress {
    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EndpointAddress {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = || Invalid::new("endpoints", "host:port, an IPv6 address in brackets");
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host_is_well_formed = match bracketed {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            }
        };
        let port_is_well_formed = port.parse::<u16>().is_ok_and(|port| port > 0);
        if host_is_well_formed && port_is_well_formed { Ok(Self(text.to_owned())) } else { Err(invalid()) }
    }
}

impl fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An endpoint and all that is known of it.
pub(super) struct Endpoint {
    address: EndpointAddress,
    known: Mutex<Known>,
    /// The connection, if there is one. Held while connecting, so that concurrent calls share one attempt.
    pub(super) channel: tokio::sync::Mutex<Option<Established>>,
}

/// A connection and which one it is: a failed call drops the one it used, never a newer one.
#[derive(Clone)]
pub(super) struct Established {
    pub(super) channel: Channel,
    pub(super) number: u64,
    /// Of our credentials, when it was made.
    pub(super) generation: u64,
    /// Who answers.
    pub(super) server: PeerCertificate,
}

impl Established {
    /// Whether a connection made now would be judged as this one was: neither end's certificate has ended, and our files
    /// are the same. Otherwise a renewed client would go on showing the certificate it had before.
    pub(super) fn is_current(&self, tls: &Tls) -> bool {
        self.generation == tls.generation() && tls.check(&self.server).is_ok()
    }
}

#[derive(Debug, Clone, Default)]
struct Known {
    round_trip: Option<Duration>,
    zone: Option<String>,
    resting_until: Option<Instant>,
}

/// The order in which endpoints are asked; lower first.
pub(super) type Rank = (bool, bool, Duration);

impl Endpoint {
    pub(super) fn new(address: EndpointAddress) -> Self {
        Self { address, known: Mutex::default(), channel: tokio::sync::Mutex::default() }
    }

    pub(super) fn address(&self) -> &str {
        self.address.as_str()
    }

    /// How this endpoint ranks now for a caller in `zone`.
    pub(super) fn rank(&self, zone: Option<&str>, now: Instant) -> Rank {
        self.known(|known| {
            let resting = known.resting_until.is_some_and(|until| now < until);
            let elsewhere = zone.is_some() && known.zone.as_deref() != zone;
            (resting, elsewhere, known.round_trip.unwrap_or(Duration::MAX))
        })
    }

    pub(super) fn measured(&self, round_trip: Duration) {
        self.known(|known| known.round_trip = Some(round_trip));
    }

    pub(super) fn stands_in(&self, zone: &str) {
        self.known(|known| known.zone = Some(zone.to_owned()));
    }

    pub(super) fn failed(&self, now: Instant) {
        self.known(|known| known.resting_until = Some(now + REST_AFTER_FAILURE));
    }

    pub(super) fn answered(&self) {
        self.known(|known| known.resting_until = None);
    }

    /// Forgets the connection a call failed on.
    pub(super) async fn drop_connection(&self, number: u64) {
        let mut channel = self.channel.lock().await;
        if channel.as_ref().is_some_and(|established| established.number == number) {
            *channel = None;
        }
    }

    fn known<T>(&self, look: impl FnOnce(&mut Known) -> T) -> T {
        // What is known is only a preference: a panic elsewhere while it was held leaves it usable.
        look(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str) -> Endpoint {
        Endpoint::new(address.parse().unwrap())
    }

    #[test]
    fn an_address_is_host_and_port() {
        for good in ["node-1:7420", "192.0.2.1:1", "[2001:db8::1]:65535", "a.b_c.example:7420"] {
            assert_eq!(good.parse::<EndpointAddress>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "node-1",
            ":7420",
            "node:",
            "node:0",
            "node:65536",
            "2001:db8::1:7420",
            "https://n:1",
            "a b:1",
        ] {
            let error = bad.parse::<EndpointAddress>().unwrap_err();
            assert_eq!(error.field, "endpoints", "{bad}");
        }
    }

    #[test]
    fn own_zone_ranks_before_a_lower_round_trip_and_failed_endpoints_rank_last() {
        let (near, own, failed) = (endpoint("near:1"), endpoint("own:1"), endpoint("failed:1"));
        near.measured(Duration::from_millis(1));
        own.measured(Duration::from_millis(9));
        own.stands_in("a");
        failed.measured(Duration::from_micros(1));
        failed.stands_in("a");
        let now = Instant::now();
        failed.failed(now);
        let order = |zone, now| {
            let mut all = [&near, &own, &failed];
            all.sort_by_key(|endpoint| endpoint.rank(zone, now));
            all.map(Endpoint::address)
        };
        assert_eq!(order(Some("a"), now), ["own:1", "near:1", "failed:1"]);
        assert_eq!(order(None, now), ["near:1", "own:1", "failed:1"]);
        let rested = now + REST_AFTER_FAILURE;
        assert_eq!(order(Some("a"), rested), ["failed:1", "own:1", "near:1"]);
    }
}

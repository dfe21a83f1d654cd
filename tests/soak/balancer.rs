//! Which pod a new connection goes to: any of those that are ready, as kube-proxy chooses. As
//! there, a connection that is open is left alone, and nothing stands in its way.

use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use rand::Rng;
use tokio::time::{Instant, sleep};

/// Pods.
pub(crate) const PODS: usize = 3;
/// How often a pod is asked whether it is ready.
const PERIOD: Duration = Duration::from_millis(300);
/// A pod that does not say within this time is not ready.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Pod {
    /// Of its public and of its admin listener, while it runs.
    addresses: Mutex<Option<(SocketAddr, SocketAddr)>>,
    ready: AtomicBool,
    /// From when to when it could not answer, as it was stopped, killed or starting.
    away: Mutex<Vec<(Instant, Option<Instant>)>>,
}

/// The pods, as a Service knows them.
#[derive(Debug, Default)]
pub(crate) struct Balancer([Pod; PODS]);

/// A pod that was chosen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chosen {
    pub(crate) pod: usize,
    pub(crate) address: SocketAddr,
}

impl Balancer {
    /// A pod runs here from now on.
    pub(crate) fn runs(&self, pod: usize, public: SocketAddr, admin: SocketAddr) {
        *self.0[pod].addresses.lock().unwrap() = Some((public, admin));
    }

    /// A pod is gone.
    pub(crate) fn gone(&self, pod: usize) {
        *self.0[pod].addresses.lock().unwrap() = None;
        self.0[pod].ready.store(false, Relaxed);
    }

    /// The test takes a pod's answers away, or gives them back.
    pub(crate) fn away(&self, pod: usize, is_away: bool) {
        let mut away = self.0[pod].away.lock().unwrap();
        match away.last_mut() {
            Some((_, end @ None)) if !is_away => *end = Some(Instant::now()),
            _ if is_away => away.push((Instant::now(), None)),
            _ => {}
        }
    }

    /// Whether the test had taken the pod's answers away at any time since `since`.
    pub(crate) fn was_away(&self, pod: usize, since: Instant) -> bool {
        let away = self.0[pod].away.lock().unwrap();
        away.iter().any(|(_, end)| end.is_none_or(|end| end >= since))
    }

    /// Any of the pods that are ready.
    pub(crate) fn choose(&self, rng: &mut impl Rng) -> Option<Chosen> {
        let ready = |pod: &usize| self.0[*pod].ready.load(Relaxed);
        let ready: Vec<usize> = (0..PODS).filter(ready).collect();
        let pod = *ready.get(rng.random_range(0..ready.len().max(1)))?;
        let address = self.0[pod].addresses.lock().unwrap().map(|(public, _)| public)?;
        Some(Chosen { pod, address })
    }

    pub(crate) fn ready(&self) -> usize {
        self.0.iter().filter(|pod| pod.ready.load(Relaxed)).count()
    }

    /// Asks a pod whether it is ready, for ever; `changed` is told.
    pub(crate) async fn probe(&self, number: usize, changed: impl Fn(bool)) {
        let pod = &self.0[number];
        let client = reqwest::Client::builder().pool_max_idle_per_host(0).timeout(PROBE_LIMIT);
        let client = client.build().unwrap();
        loop {
            let address = pod.addresses.lock().unwrap().map(|(_, admin)| admin);
            let is_ready = match address {
                Some(admin) => {
                    let answer = client.get(format!("http://{admin}/readyz")).send().await;
                    answer.is_ok_and(|answer| answer.status().as_u16() == 200)
                }
                None => false,
            };
            // It may have been replaced meanwhile.
            let is_ready = is_ready && pod.addresses.lock().unwrap().is_some();
            if pod.ready.swap(is_ready, Relaxed) != is_ready {
                changed(is_ready);
            }
            sleep(PERIOD).await;
        }
    }
}

//! Scaling by connections: how many pods the open streams ask for. Up at once; down only to the
//! most that was asked for in the last minutes, so that subscribers on their way from one pod to
//! another do not make a pod end that others are connected to.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use k8s_openapi::api::apps::v1::Deployment;
use kube::Resource;

use super::{desired::Load, live::Live, ownership::is_ours, pods::Pods, validate::ValidChannel};
use crate::crd::workload::Autoscaling;

/// How often connections are counted.
pub(super) const LOOK: Duration = Duration::from_secs(10);
/// How long a number of pods is kept after it was last asked for.
const KEEP: Duration = Duration::from_secs(5 * 60);

/// What the channel's load asks for; `counted` = its pods, where connections are counted.
pub(super) fn load(
    valid: &ValidChannel,
    live: &Live,
    counted: Option<&Pods>,
    observe: bool,
    window: &mut Window,
    now: Instant,
) -> Load {
    let deployment = live.deployment.as_ref().filter(|found| is_ours(found.meta(), &valid.uid));
    let replicas = deployment.and_then(replicas);
    // An autoscaler leaves a Deployment without pods alone, so one without is started like a new
    // one.
    let deployed = replicas.is_some_and(|n| n > 0);
    let (Some(scaling), Some(pods)) = (&valid.workload.autoscaling, counted) else {
        return Load { asked: None, deployed };
    };
    // While only observing, any number within bounds is as the spec says.
    let found = match scaling.cpu_utilization {
        Some(_) => live
            .autoscaler
            .as_ref()
            .and_then(|a| a.spec.as_ref())
            .and_then(|spec| spec.min_replicas),
        None => replicas,
    };
    let found = found.unwrap_or(scaling.min_replicas);
    let asked = match needed(scaling, pods, found) {
        Some(_) if observe => Some(found),
        Some(needed) => Some(window.settle(now, needed, found)),
        None => None,
    };
    Load { asked, deployed }
}

/// Pods that a Deployment asks for.
pub(super) fn replicas(deployment: &Deployment) -> Option<i32> {
    deployment.spec.as_ref().and_then(|spec| spec.replicas)
}

/// Pods that the connections ask for right now. While a pod gives no number, there is no evidence
/// that fewer than the `live` ones would do.
pub(super) fn needed(scaling: &Autoscaling, pods: &Pods, live: i32) -> Option<i32> {
    let per_pod = u64::try_from(scaling.connections_per_pod?).ok().filter(|n| *n > 0)?;
    let counted = i32::try_from(pods.connections.div_ceil(per_pod)).unwrap_or(i32::MAX);
    let needed = if pods.uncounted { counted.max(live) } else { counted };
    Some(needed.clamp(scaling.min_replicas, scaling.max_replicas))
}

/// The numbers asked for in the last [`KEEP`], as far as they still count: each smaller than the
/// one before it.
#[derive(Debug, Default)]
pub(super) struct Window(VecDeque<(Instant, i32)>);

impl Window {
    /// Takes in that `needed` pods are asked for at `now` and tells how many there should be. Where
    /// nothing is remembered (a new operator, a channel that was paused), the `live` number counts
    /// as asked for now.
    pub(super) fn settle(&mut self, now: Instant, needed: i32, live: i32) -> i32 {
        self.0.retain(|(at, _)| now.saturating_duration_since(*at) < KEEP);
        if self.0.is_empty() {
            self.0.push_back((now, live));
        }
        // What is older and not larger can never count again.
        while self.0.back().is_some_and(|(_, older)| *older <= needed) {
            self.0.pop_back();
        }
        self.0.push_back((now, needed));
        self.0.front().map_or(needed, |(_, most)| *most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaling() -> Autoscaling {
        Autoscaling {
            min_replicas: 2,
            max_replicas: 10,
            connections_per_pod: Some(100),
            cpu_utilization: None,
        }
    }

    fn pods(connections: u64, uncounted: bool) -> Pods {
        Pods { connections, uncounted, ..Pods::default() }
    }

    #[test]
    fn as_many_pods_as_the_connections_need_within_bounds() {
        for (connections, expected) in [(0, 2), (200, 2), (201, 3), (999, 10), (u64::MAX, 10)] {
            assert_eq!(
                needed(&scaling(), &pods(connections, false), 4),
                Some(expected),
                "{connections}"
            );
        }
        let by_cpu =
            Autoscaling { connections_per_pod: None, cpu_utilization: Some(70), ..scaling() };
        assert_eq!(needed(&by_cpu, &pods(5_000, false), 4), None);
    }

    #[test]
    fn a_pod_that_gives_no_number_forbids_fewer_and_not_more() {
        assert_eq!(needed(&scaling(), &pods(0, true), 4), Some(4));
        assert_eq!(needed(&scaling(), &pods(700, true), 4), Some(7));
    }

    #[test]
    fn up_at_once_and_down_after_five_minutes_of_less() {
        let (start, mut window) = (Instant::now(), Window::default());
        let mut at =
            |second, needed, live| window.settle(start + Duration::from_secs(second), needed, live);
        // What is there at the start counts as asked for.
        assert_eq!(at(0, 2, 4), 4);
        assert_eq!(at(10, 7, 4), 7);
        assert_eq!(at(20, 3, 7), 7);
        assert_eq!(at(100, 5, 7), 7);
        assert_eq!(at(309, 2, 7), 7);
        // The seven were last asked for at 10 s, the five at 100 s.
        assert_eq!(at(310, 2, 7), 5);
        assert_eq!(at(399, 2, 5), 5);
        assert_eq!(at(400, 2, 5), 2);
        assert_eq!(at(401, 9, 2), 9);
    }

    #[test]
    fn what_was_forgotten_starts_from_what_is_there() {
        let (start, mut window) = (Instant::now(), Window::default());
        window.settle(start, 5, 5);
        assert_eq!(window.settle(start + Duration::from_secs(3600), 2, 8), 8);
    }

    #[test]
    fn the_memory_is_bounded_by_the_number_of_pods() {
        let (start, mut window) = (Instant::now(), Window::default());
        for tick in 0..100_000_u64 {
            let needed = i32::try_from(10 - tick % 11).unwrap();
            window.settle(start + Duration::from_millis(tick), needed, 5);
        }
        assert!(window.0.len() <= 11, "{}", window.0.len());
    }
}

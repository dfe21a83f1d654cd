//! The PodMonitor, which tells a Prometheus operator to scrape the pods' admin port.

use super::common::{metadata, selector};
use crate::controller::{
    foreign::{PodMetricsEndpoint, PodMonitor, PodMonitorSpec},
    validate::ValidChannel,
};

pub(super) fn pod_monitor(channel: &ValidChannel) -> PodMonitor {
    let endpoint = PodMetricsEndpoint { port: "admin".to_owned(), path: "/metrics".to_owned() };
    let mut monitor = PodMonitor::new(
        "",
        PodMonitorSpec { selector: selector(channel), pod_metrics_endpoints: vec![endpoint] },
    );
    monitor.metadata = metadata(channel);
    monitor
}

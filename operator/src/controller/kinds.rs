//! The kinds of objects that a channel has, spelled once: [`for_each_kind`] hands the table to
//! whatever does something with each of them.
//!
//! The order of the table is the order in which objects are made: what pods need goes before them,
//! and so does what keeps others from them; the way in comes after them. They are removed in the
//! reverse order, and not before the pods can do without them: see [`Removal`].

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
pub(super) use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{ConfigMap, Service, ServiceAccount},
    networking::v1::{Ingress, NetworkPolicy},
    policy::v1::PodDisruptionBudget,
};

pub(super) use super::foreign::{HTTPRoute, PodMonitor};

/// Which of a channel's conditions speaks of an object's trouble, and what waits for it: the way in
/// and the monitor wait for the pods' objects, and nothing waits for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The pods and all that they need.
    Pods,
    /// The way in from outside.
    Exposure,
    Monitoring,
}

/// When an object that is no longer wanted goes. Never before the Deployment is what the spec says:
/// one that is refused leaves the pods of the former spec, and all that these need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Removal {
    /// Once the Deployment is applied: no pod needs it, and while it is there it acts on the pods.
    Applied,
    /// Once no pod of a former template is left: those may need it.
    RolledOut,
}

/// Calls the macro `$table` with the arguments and a row in braces for each kind: its field, its
/// type, whether each channel has one (`required`) or not (`optional`), its [`Part`], its
/// [`Removal`].
macro_rules! for_each_kind {
    ($table:ident $(, $argument:tt)*) => {
        $table! {
            $($argument)*
            {
                /// Identity of the pods, without rights; none where the spec names one.
                service_account: $crate::controller::kinds::ServiceAccount,
                optional, Pods, RolledOut
            }
            {
                /// The file that the pods read.
                config: $crate::controller::kinds::ConfigMap,
                required, Pods, RolledOut
            }
            {
                /// Which clients may reach the pods.
                network_policy: $crate::controller::kinds::NetworkPolicy,
                optional, Pods, RolledOut
            }
            {
                /// Their address.
                service: $crate::controller::kinds::Service,
                required, Pods, RolledOut
            }
            {
                /// One pod at a time.
                disruption_budget: $crate::controller::kinds::PodDisruptionBudget,
                optional, Pods, RolledOut
            }
            {
                /// The pods.
                deployment: $crate::controller::kinds::Deployment,
                required, Pods, RolledOut
            }
            {
                /// Number of pods by processor use. Two must not set it.
                autoscaler: $crate::controller::kinds::HorizontalPodAutoscaler,
                optional, Pods, Applied
            }
            {
                /// The way in from outside, by an Ingress.
                ingress: $crate::controller::kinds::Ingress,
                optional, Exposure, RolledOut
            }
            {
                /// The way in from outside, by the Gateway API.
                http_route: $crate::controller::kinds::HTTPRoute,
                optional, Exposure, RolledOut
            }
            {
                /// Tells Prometheus of the pods.
                pod_monitor: $crate::controller::kinds::PodMonitor,
                optional, Monitoring, RolledOut
            }
        }
    };
}
pub(super) use for_each_kind;

/// What an object of a kind is in [`Children`].
macro_rules! wanted {
    (required $kind:ty) => { $kind };
    (optional $kind:ty) => { Option<$kind> };
}

macro_rules! define {
    ($({
        $(#[$doc:meta])* $field:ident: $kind:ty, $presence:ident, $part:ident, $removal:ident
    })*) => {
        /// Every object of a channel as it should be. A `None` must not exist.
        #[derive(Debug, Clone, PartialEq)]
        pub(crate) struct Children {
            $($(#[$doc])* pub(crate) $field: wanted!($presence $kind),)*
        }

        /// The channel's objects as they are. An object of the right name that belongs to another
        /// owner is here too: [`super::ownership`] tells.
        #[derive(Debug, Clone, Default)]
        pub(crate) struct Live {
            $($(#[$doc])* pub(crate) $field: Option<$kind>,)*
            /// Kinds that the cluster does not know.
            pub(crate) unknown: BTreeSet<String>,
            pub(crate) pods: Vec<Pod>,
        }

        /// Which objects a channel has.
        #[derive(Debug, Clone, Copy)]
        pub(super) struct Wanted {
            $(pub(super) $field: bool,)*
        }

        /// What the API server made of the objects that were applied last.
        #[derive(Debug, Default)]
        pub(crate) struct Projections {
            $(pub(super) $field: Option<Projection>,)*
        }
    };
}
for_each_kind!(define);

/// The API server writes some values its own way (`0.5` of a processor becomes `500m`), which is no
/// drift. Hashes, since the objects of thousands of channels would be tens of megabytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Projection {
    /// Of what was applied.
    pub(super) applied: u64,
    /// Of the values that the API server has at the places that the applied object speaks of.
    pub(super) answered: u64,
}

//! The Kubernetes side, in named steps.

pub mod desired;
pub mod validate;

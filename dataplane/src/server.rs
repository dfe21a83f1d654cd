//! The public listener: accepts connections and answers `/channels/…`.

pub mod accept;
mod cors;
pub mod handoff;
mod page;
mod problem;
mod publish;
pub(crate) mod query;
mod routes;
mod stream;

pub use routes::router;

//! The public listener: accepts connections and answers `/channels/…`.

pub(crate) mod accept;
mod cors;
pub(crate) mod handoff;
mod page;
mod problem;
mod publish;
pub(crate) mod query;
mod routes;
mod stream;

pub(crate) use routes::router;

//! The public listener: accepts connections and answers `/channels/…`.

pub(crate) mod accept;
pub(crate) mod connection;
pub(crate) mod connections;
mod cors;
pub(crate) mod handoff;
mod http2;
mod page;
mod problem;
mod publish;
pub(crate) mod query;
mod request;
mod routes;
mod socket;
mod stream;
mod writing;

pub(crate) use routes::router;

//! Real servers, hostile input and the router's own rules, for the tests of every crate.
//!
//! Neighbours: tests only; no crate of the node depends on it outside `[dev-dependencies]`. It never uses the
//! protocol crate: what it knows of the wire comes from the contract, so that the two can disagree.
//!
//! - Servers: [`nats`], [`postgres`], [`mod@prometheus`], and the node itself as a process in [`worker`]. Each listens on a port of its
//!   own, keeps its files in a directory of its own, and is gone when its value is dropped. A server whose program
//!   is missing is an error that says what to install; nothing is ever skipped.
//! - A collector of spans, good or bad: [`mod@otlp`].
//! - Eyes: [`browser`] is what a person looks at pages with.
//! - A provider of models, good or bad: [`openai`].
//! - In between: [`mod@proxy`] is a network that can be broken, and held at a named message.
//! - Faults: [`mod@faulty_http`] fails as told, [`mod@hostile_http`] means harm, [`mod@resolver`] changes the addresses of names,
//!   [`stall`] is a file system that hangs.
//! - The other side: [`client`] publishes and collects, [`router`] judges what the worker sent as the router would,
//!   [`mod@asyncapi`] holds it against the document, [`strict`] is harder to please than the router, [`assignment`]
//!   builds what the router sends.
//! - Measured: [`promql`] reads expressions and scrapes.
//! - Input: [`mod@malformed`] is hostile, [`fixtures`] is on file.
//! - Waiting: [`wait`]. It holds the only sleeps of the tests.

pub mod assignment;
pub mod asyncapi;
pub mod browser;
pub mod client;
pub mod corpus;
pub mod credentials;
pub mod faulty_http;
pub mod fixtures;
pub mod hostile_http;
pub mod http;
pub mod malformed;
pub mod nats;
pub mod openai;
pub mod otlp;
pub mod ports;
pub mod postgres;
pub mod programs;
pub mod prometheus;
pub mod promql;
pub mod proxy;
pub mod resolver;
pub mod router;
pub mod stall;
pub mod strict;
pub mod tls;
pub mod wait;
pub mod worker;

mod process;
mod temp;

pub use assignment::AssignmentBuilder;
pub use browser::Browser;
pub use client::{Client, Collector};
pub use malformed::malformed;
pub use nats::{NatsAuth, NatsOptions, NatsServer};
pub use postgres::{Postgres, PostgresOptions};
pub use prometheus::Prometheus;
pub use proxy::Proxy;
pub use router::{RouterIntake, Verdict};
pub use temp::TempDir;
pub use wait::{wait_until, wait_until_async};
pub use worker::Worker;

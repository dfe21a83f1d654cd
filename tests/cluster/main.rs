//! The product on a cluster with nodes: the chart is installed, channels are applied, and then
//! things go wrong while 200 subscribers read through a Service.
//!
//! `make cluster-test` starts the cluster and runs this in its network; README.md beside this file
//! says what it is and how it differs from a cluster that a user has. The cases share one cluster
//! and run in this order.

// As in other tests; clippy knows tests only by their attribute, which these do not have.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod admission;
mod chaos;
mod first_steps;
mod fixture;
mod fleet;
mod ingress;
mod kubectl;
mod nats_away;
mod nodes;
mod operators;
mod pages;
mod pods;
mod rights;
mod scaling;
mod subscriber;
mod surroundings;
mod uninstall;

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Trial};

use crate::fixture::Fixture;

/// Longest that one case may take. The longest, a node's power cut, takes about two minutes.
const CASE_LIMIT: Duration = Duration::from_secs(300);

/// Without these the rest says nothing.
const FOUNDATIONS: [&str; 3] = ["install", "first_steps", "subscribers_connect"];
static FOUNDATION_FAILED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let cases = cases();
    if arguments.list {
        return libtest_mimic::run(&arguments, cases).exit_code();
    }
    if std::env::var_os("KUBECONFIG").is_none() {
        eprintln!(
            "The cluster's tests need a cluster: `make cluster-test` starts one (tests/cluster/README.md)."
        );
        return ExitCode::FAILURE;
    }
    // With the cluster gone there is nothing to test.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .expect("the kernel takes the setting");
    // One after the other, in the order of the list.
    arguments.test_threads = Some(1);
    let started = Instant::now();
    let conclusion = libtest_mimic::run(&arguments, cases);
    Fixture::get().print_table();
    Fixture::get().clean();
    println!("the cluster's tests took {:.0} s", started.elapsed().as_secs_f64());
    conclusion.exit_code()
}

macro_rules! case {
    ($path:path) => {
        Trial::test(stringify!($path).replace("::", " :: "), || {
            run(stringify!($path), $path(Fixture::get()));
            Ok(())
        })
    };
}

fn cases() -> Vec<Trial> {
    let mut cases = vec![
        case!(first_steps::install),
        case!(first_steps::first_steps),
        case!(pages::look),
        case!(pages::admin),
        case!(pages::manifests_are_taken),
        case!(admission::what_is_applied_does_not_differ),
        case!(admission::refusals_say_what_to_do),
        case!(admission::explain_reads_well),
        case!(pods::pods_meet_the_restricted_standard),
        case!(chaos::subscribers_connect),
    ];
    if Fixture::has_nodes() {
        cases.extend([
            case!(chaos::a_node_loses_power),
            case!(chaos::a_pod_is_killed),
            case!(chaos::the_operators_leader_is_killed),
            case!(chaos::nats_is_killed),
        ]);
    } else {
        println!(
            "not run here, since the nodes' processes cannot be reached: power cut of a node, and SIGKILL of a pod, of the operator, of nats-server"
        );
    }
    cases.extend([
        case!(chaos::a_pod_is_deleted),
        case!(chaos::the_channel_is_restarted),
        case!(chaos::it_is_scaled_from_one_to_four_to_one),
        case!(chaos::evictions_respect_the_budget),
        case!(chaos::a_node_is_drained),
        case!(chaos::the_operator_is_upgraded),
        case!(nats_away::nats_is_away),
        case!(operators::one_of_two_acts),
        case!(operators::a_lost_lease_stops_writes),
        case!(chaos::subscribers_leave),
        case!(scaling::pods_follow_connections),
        case!(surroundings::objects_around_the_pods),
        case!(uninstall::channels_and_events_outlive_the_release),
        case!(rights::the_operator_stays_within_its_rights),
        case!(uninstall::nothing_is_left),
    ]);
    cases
}

/// Runs one case within [`CASE_LIMIT`] and says how long it took.
fn run(name: &str, body: impl Future<Output = ()>) {
    let name = name.rsplit("::").next().unwrap_or(name).trim();
    assert!(!FOUNDATION_FAILED.load(Relaxed), "not run, since the cluster has no working product");
    let is_foundation = FOUNDATIONS.contains(&name);
    FOUNDATION_FAILED.store(is_foundation, Relaxed);
    let started = Instant::now();
    let done =
        Fixture::get().runtime().block_on(async { tokio::time::timeout(CASE_LIMIT, body).await });
    assert!(done.is_ok(), "{name} took longer than {CASE_LIMIT:?}");
    println!("{name}: {:.1} s", started.elapsed().as_secs_f64());
    FOUNDATION_FAILED.store(false, Relaxed);
}

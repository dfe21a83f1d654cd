//! Lets the faults of a schedule happen.

use std::{cell::RefCell, time::Duration};

use async_nats::jetstream::stream::Config;
use serde_json::{Value, json};
use sluice_channel::{ChannelConfig, config::Delivery};
use sluice_tests::{
    dataplane::ConfigDir,
    nats::{Names, Streams, cut::CutCluster},
    proxy::Proxy,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::{
    bed::{KEPT, Pods, configuration},
    book::Removal,
    report::Rows,
    schedule::{Edit, Fault, Link, Planned, Who},
    soak::Soak,
};

/// What a fault has done shows for a while after its end.
const AFTER: Duration = Duration::from_secs(3);
/// One request to the store's administration.
const REQUEST_LIMIT: Duration = Duration::from_secs(3);
/// Until a request is answered: longer than any outage of the schedule.
const ANSWER_LIMIT: Duration = Duration::from_secs(90);
/// Longest that a leader is looked for.
const LEADER_LIMIT: Duration = Duration::from_secs(2);

/// Lets the faults of one track happen, one after the other.
pub(crate) async fn follow(
    soak: &Soak,
    rows: &RefCell<Rows>,
    planned: &[Planned],
    mut act: impl AsyncFnMut(&Fault, Duration),
) {
    for Planned { at, lasts, fault } in planned {
        sleep_until(soak.started + *at).await;
        let began = soak.started.elapsed();
        soak.note(format!("{}: {fault:?} for {:.1} s", fault.kind(), lasts.as_secs_f64()));
        act(fault, *lasts).await;
        soak.note(format!("{}: over", fault.kind()));
        let ended = soak.started.elapsed() + AFTER;
        rows.borrow_mut().add(fault.kind(), began, ended);
    }
}

/// What happens to brokers.
pub(crate) struct Brokers<'a> {
    pub(crate) soak: &'a Soak,
    pub(crate) cut: &'a mut CutCluster,
    pub(crate) streams: &'a Streams,
    pub(crate) stream: &'a str,
    pub(crate) logs: &'a std::path::Path,
}

impl Brokers<'_> {
    pub(crate) async fn act(&mut self, fault: &Fault, lasts: Duration) {
        match fault {
            Fault::KillBroker(who) => {
                let server = self.find(*who).await;
                self.note("killed", server);
                let broker = &mut self.cut.cluster.servers[server];
                let name = broker.name().to_owned();
                broker.process().keep_log(&name, self.logs);
                broker.kill();
                sleep(lasts).await;
                broker.start_again();
            }
            Fault::StopBroker(who) => {
                let server = self.find(*who).await;
                self.note("stopped", server);
                let broker = &mut self.cut.cluster.servers[server];
                broker.process().pause();
                sleep(lasts).await;
                broker.process().resume();
            }
            Fault::StopTwoBrokers(left) => {
                for number in [(left + 1) % 3, (left + 2) % 3] {
                    self.cut.cluster.servers[number].process().pause();
                }
                sleep(lasts).await;
                for number in [(left + 1) % 3, (left + 2) % 3] {
                    self.cut.cluster.servers[number].process().resume();
                }
            }
            Fault::Isolate(who, link) => {
                let server = self.find(*who).await;
                self.note("isolated", server);
                match link {
                    Link::Cut => self.cut.cut(server),
                    Link::Refused => self.cut.refuse(server),
                }
                sleep(lasts).await;
                self.cut.heal(server);
            }
            Fault::CutBetween(one, other) => {
                self.cut.cut_between(*one, *other);
                sleep(lasts).await;
                self.cut.heal(*one);
            }
            other => unreachable!("{other:?} is not about brokers"),
        }
    }

    fn note(&self, what: &str, server: usize) {
        self.soak.note(format!("nats{server} is {what}"));
    }

    async fn find(&self, who: Who) -> usize {
        let found = match who {
            Who::Server(server) => return server,
            Who::Leader => timeout(LEADER_LIMIT, self.leader()).await.ok().flatten(),
            Who::MetaLeader => timeout(LEADER_LIMIT, self.cut.meta_leader()).await.ok(),
        };
        // With no leader to be seen, any is as good.
        found.unwrap_or_default()
    }

    async fn leader(&self) -> Option<usize> {
        let stream = self.streams.context().get_stream(self.stream).await.ok()?;
        let leader = stream.cached_info().cluster.as_ref()?.leader.clone()?;
        self.cut.cluster.servers.iter().position(|server| server.name() == leader)
    }
}

/// What happens to pods.
pub(crate) struct PodFaults<'a> {
    pub(crate) soak: &'a Soak,
    pub(crate) pods: &'a mut Pods,
    pub(crate) configs: &'a ConfigDir,
}

impl PodFaults<'_> {
    pub(crate) async fn act(&mut self, fault: &Fault, lasts: Duration) {
        let balancer = &self.soak.balancer;
        match fault {
            Fault::KillPod(pod) => {
                balancer.away(*pod, true);
                balancer.gone(*pod);
                self.pods.kill(*pod);
                sleep(lasts).await;
                self.pods.start(*pod, self.configs, balancer).await;
                balancer.away(*pod, false);
            }
            Fault::RollPod(pod) => {
                balancer.away(*pod, true);
                // The Service hears of it while the pod still accepts.
                self.pods.drain(*pod).await;
                balancer.gone(*pod);
                sleep(lasts).await;
                self.pods.start(*pod, self.configs, balancer).await;
                balancer.away(*pod, false);
            }
            Fault::StopPod(pod) => {
                balancer.away(*pod, true);
                self.pods.plane(*pod).process().pause();
                sleep(lasts).await;
                self.pods.plane(*pod).process().resume();
                balancer.away(*pod, false);
            }
            other => unreachable!("{other:?} is not about pods"),
        }
    }
}

/// What happens between pods and brokers.
pub(crate) async fn link(links: &[Vec<Proxy>], fault: &Fault, lasts: Duration) {
    let (chosen, how): (Vec<&Proxy>, Link) = match fault {
        Fault::CutPod(pod, how) => (links[*pod].iter().collect(), *how),
        Fault::CutOneLink(pod, broker, how) => (vec![&links[*pod][*broker]], *how),
        other => unreachable!("{other:?} is not about links"),
    };
    for proxy in &chosen {
        match how {
            Link::Cut => proxy.cut(),
            Link::Refused => proxy.refuse(),
        }
    }
    sleep(lasts).await;
    chosen.iter().for_each(|proxy| proxy.mend());
}

/// What happens to the stream.
pub(crate) struct StreamFaults<'a> {
    pub(crate) soak: &'a Soak,
    pub(crate) streams: &'a Streams,
    pub(crate) config: &'a Config,
}

impl StreamFaults<'_> {
    pub(crate) async fn act(&self, fault: &Fault, lasts: Duration) {
        let name = &self.config.name;
        match fault {
            Fault::StepDown => self.try_once(format!("STREAM.LEADER.STEPDOWN.{name}")).await,
            Fault::StepDownMeta => self.try_once("META.LEADER.STEPDOWN".to_owned()).await,
            Fault::PurgeTopic(topic) => {
                let subject = self.config.subjects[0].replace('>', &format!("t{topic}"));
                self.remove(Removal::Topic(*topic), "PURGE", &json!({"filter": subject})).await;
            }
            Fault::PurgeUpTo(share) => {
                let Some((first, last)) = self.bounds().await else { return };
                let end = first + (last + 1 - first) * share / 100;
                self.remove(Removal::Before(end), "PURGE", &json!({"seq": end})).await;
            }
            Fault::Delete(places) => {
                let Some((first, last)) = self.bounds().await else { return };
                for place in places {
                    self.delete(first + (last + 1 - first) * place / 100_000).await;
                }
            }
            Fault::DeleteNewest => {
                let Some((_, last)) = self.bounds().await else { return };
                self.delete(last).await;
            }
            Fault::MaxMessages(limit) => {
                let max_messages = i64::try_from(*limit).unwrap();
                let config = Config { max_messages, ..self.config.clone() };
                self.limit(Removal::AllBut(*limit), config, lasts).await;
            }
            Fault::MaxBytes(limit) => {
                let config =
                    Config { max_bytes: i64::try_from(*limit).unwrap(), ..self.config.clone() };
                self.limit(Removal::bytes(*limit), config, lasts).await;
            }
            other => unreachable!("{other:?} is not about the stream"),
        }
    }

    /// First and last sequence, as far as any server knows.
    async fn bounds(&self) -> Option<(u64, u64)> {
        let stream = self.streams.context().get_stream(&self.config.name);
        let stream = timeout(REQUEST_LIMIT, stream).await.ok()?.ok()?;
        let state = &stream.cached_info().state;
        (state.last_sequence > state.first_sequence)
            .then_some((state.first_sequence, state.last_sequence))
    }

    async fn request(&self, subject: String, body: &Value) -> Option<Value> {
        let request = self.streams.context().request::<_, _, Value>(subject, body);
        timeout(REQUEST_LIMIT, request).await.ok()?.ok()
    }

    async fn try_once(&self, subject: String) {
        let answer = self.request(subject, &json!({})).await;
        self.soak.note(format!("answered: {}", answer.unwrap_or_default()));
    }

    /// Asks once; whatever becomes of it, the events may be gone from now on.
    async fn remove(&self, removal: Removal, what: &str, body: &Value) {
        let number = self.soak.book().removes(removal, self.soak.now());
        let answer = self.request(format!("STREAM.{what}.{}", self.config.name), body).await;
        self.soak.note(format!("{removal:?}: {}", answer.clone().unwrap_or_default()));
        if answer.is_some_and(|answer| answer["success"] == Value::Bool(true)) {
            self.soak.book().removed(number, self.soak.now());
        }
    }

    async fn delete(&self, sequence: u64) {
        let body = json!({"seq": sequence, "no_erase": true});
        self.remove(Removal::One(sequence), "MSG.DELETE", &body).await;
    }

    /// Lowers a limit, and takes it back.
    async fn limit(&self, removal: Removal, config: Config, lasts: Duration) {
        let number = self.soak.book().removes(removal, self.soak.now());
        self.update(&config).await;
        sleep(lasts).await;
        if self.update(self.config).await {
            self.soak.book().removed(number, self.soak.now());
        }
    }

    /// Asks until the store has answered.
    async fn update(&self, config: &Config) -> bool {
        let deadline = Instant::now() + ANSWER_LIMIT;
        while Instant::now() < deadline {
            let update = self.streams.context().update_stream(config);
            if let Ok(Ok(_)) = timeout(REQUEST_LIMIT, update).await {
                return true;
            }
            sleep(Duration::from_millis(200)).await;
        }
        false
    }
}

/// Whatever the schedule lowers, the stream never holds more.
pub(crate) fn always(soak: &Soak) {
    soak.book().removes(Removal::AllBut(KEPT), 0);
}

/// Writes another configuration, as the kubelet does.
pub(crate) fn configure(configs: &ConfigDir, names: &Names, edit: &Edit) {
    let config = configuration(names);
    let Edit { heartbeat, write_timeout, max_connection_age, max_connections, cache_bytes } = *edit;
    let delivery = Delivery {
        heartbeat,
        write_timeout,
        max_connection_age,
        max_connections,
        cache_bytes,
        ..config.delivery
    };
    configs.write(&ChannelConfig { delivery, ..config });
}

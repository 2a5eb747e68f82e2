//! What the server counts, in Prometheus' text format.

use std::time::Instant;

use atoll_types::Operation;
use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use rustc_hash::FxHashMap;

use crate::server::Context;
use crate::sessions::Results;

/// Upper bounds of the latency histogram, in seconds.
const BUCKETS: &[f64] = &[5e-6, 2e-5, 1e-4, 5e-4, 2e-3, 1e-2, 5e-2, 0.2, 1.0, 5.0];

struct PerOperation {
    seconds: Histogram,
    errors: IntCounter,
}

pub(crate) struct Metrics {
    registry: Registry,
    operations: FxHashMap<&'static str, PerOperation>,
    pub refused: IntCounter,
    journal_batches: IntCounter,
    journal_changes: IntCounter,
    journal_failures: IntCounter,
    server: IntGaugeVec,
    volumes: IntGaugeVec,
    links: IntGaugeVec,
    queues: IntGaugeVec,
    bucket_requests: IntGaugeVec,
    /// Hints of buckets, by where they come from and what became of them.
    pub hints: IntCounterVec,
}

impl Metrics {
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let seconds = HistogramVec::new(
            HistogramOpts::new("atoll_operation_seconds", "Time an operation took in the server, waits included.")
                .buckets(BUCKETS.to_vec()),
            &["operation"],
        )?;
        let errors = IntCounterVec::new(
            Opts::new("atoll_operation_errors_total", "Operations that ended in an error."),
            &["operation"],
        )?;
        let refused = IntCounter::new("atoll_connections_refused_total", "Connections that were not let in.")?;
        let journal_batches = IntCounter::new(
            "atoll_journal_batches_total",
            "Batches of changes that clients had made before they asked.",
        )?;
        let journal_changes = IntCounter::new("atoll_journal_changes_total", "Changes in these batches.")?;
        let journal_failures =
            IntCounter::new("atoll_journal_failures_total", "Changes in these batches that ended in an error.")?;
        let server = IntGaugeVec::new(Opts::new("atoll_server", "Figures of the server."), &["figure"])?;
        let volumes = IntGaugeVec::new(Opts::new("atoll_volume", "Figures of an open volume."), &["volume", "figure"])?;
        let links = IntGaugeVec::new(
            Opts::new("atoll_link", "Figures of a linked directory of an open volume."),
            &["volume", "directory", "bucket", "figure"],
        )?;
        let queues = IntGaugeVec::new(
            Opts::new("atoll_queue", "Figures of a queue of links of open volumes."),
            &["queue", "figure"],
        )?;
        let bucket_requests = IntGaugeVec::new(
            Opts::new(
                "atoll_bucket_requests",
                "Requests to the buckets of links since the start, failed attempts included.",
            ),
            &["request"],
        )?;
        let hints = IntCounterVec::new(
            Opts::new("atoll_hints_total", "Notifications of buckets by source and result."),
            &["source", "result"],
        )?;
        let all: [Box<dyn Collector>; 12] = [
            Box::new(seconds.clone()),
            Box::new(errors.clone()),
            Box::new(refused.clone()),
            Box::new(journal_batches.clone()),
            Box::new(journal_changes.clone()),
            Box::new(journal_failures.clone()),
            Box::new(server.clone()),
            Box::new(volumes.clone()),
            Box::new(links.clone()),
            Box::new(queues.clone()),
            Box::new(bucket_requests.clone()),
            Box::new(hints.clone()),
        ];
        for one in all {
            registry.register(one)?;
        }
        let per = |name: &&'static str| {
            let (seconds, errors) = (seconds.with_label_values(&[*name]), errors.with_label_values(&[*name]));
            (*name, PerOperation { seconds, errors })
        };
        let operations = Operation::NAMES.iter().map(per).collect();
        Ok(Metrics {
            registry,
            operations,
            refused,
            journal_batches,
            journal_changes,
            journal_failures,
            server,
            volumes,
            links,
            queues,
            bucket_requests,
            hints,
        })
    }

    /// One operation was executed.
    pub fn executed(&self, name: &'static str, started: Instant, failed: bool) {
        if let Some(of) = self.operations.get(name) {
            of.seconds.observe(started.elapsed().as_secs_f64());
            if failed {
                of.errors.inc();
            }
        }
    }

    /// A batch of a client's journal was executed.
    pub fn journaled(&self, results: &Results) {
        self.journal_batches.inc();
        self.journal_changes.inc_by(results.len() as u64);
        self.journal_failures.inc_by(results.iter().filter(|result| result.is_err()).count() as u64);
    }

    /// All figures as of now.
    pub async fn text(&self, context: &Context) -> String {
        let set = |figure: &str, value: u64| self.server.with_label_values(&[figure]).set(value as i64);
        set("sessions", context.sessions.count(None));
        set("uptime_seconds", context.uptime().as_secs());
        self.volumes.reset();
        for (name, report) in context.registry.reports().await {
            let set = |figure: &str, value: u64| self.volumes.with_label_values(&[&name, figure]).set(value as i64);
            set("sessions", context.sessions.count(Some(&name)));
            for (figure, value) in report {
                set(figure, value);
            }
        }
        self.links.reset();
        for (name, links) in context.registry.link_reports().await {
            for link in links {
                let (directory, bucket) = (link.root.to_string(), link.settings.url());
                let set = |figure: &str, value: u64| {
                    self.links.with_label_values(&[&name, &directory, &bucket, figure]).set(value as i64);
                };
                set("unpublished", link.unpublished as u64);
                set("deleting", link.deleting as u64);
                set("conflicts", link.conflicts);
                set("written_bytes", link.traffic.written);
                set("sent_bytes", link.traffic.sent);
                set("copied_bytes", link.traffic.copied);
                set("held_back", link.held_back as u64);
                set("in_trouble", u64::from(link.trouble.is_some()));
                if let Some(heard) = link.hints {
                    set("hints", heard.hints);
                    set("asked_in_doubt", heard.asked_in_doubt);
                    set("asked_in_time", heard.asked_in_time);
                }
            }
        }
        self.queues.reset();
        for (queue, figures) in context.registry.queues.figures() {
            for (figure, value) in figures {
                // It may be read as several.
                self.queues.with_label_values(&[queue.as_str(), figure]).add(value as i64);
            }
        }
        for (request, count) in context.registry.buckets.sent.counts() {
            self.bucket_requests.with_label_values(&[&request]).set(count as i64);
        }
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "cannot write the metrics");
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

//! Queues to which buckets send their notifications: each is read by one task, as long as a link of an open volume names it.
//!
//! A message is deleted after its hints were taken in, so that none is lost with the server. What cannot be read is deleted, too: it would
//! come again for ever. While a queue cannot be read, links believe what they know for their recheck time, as when nothing is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_link::notification::{self, NotANotification};
use atoll_link::{LinkSettings, MESSAGES_MAX, Message, Queue, QueueError, QueueUrl, WAIT_MAX};
use atoll_object::ObjectOptions;
use atoll_wire::QueueInfo;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use crate::events;
use crate::server::Context;

/// Queues that are read at a time.
const QUEUES_MAX: usize = 256;
/// How often it is looked which ones are to be read, should nobody tell that this has changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// The pause after a failure; it doubles up to the second one.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Answers that are waited for at a time while there are more messages than one by one brings, and how soon they must come for that: a
/// server that is slow is not helped by more requests.
const TURNS_MAX: usize = 16;
const TURN_QUICK: Duration = Duration::from_secs(1);
/// How often at most a message that cannot be read is told in the log, and how much of it.
const UNREADABLE_INTERVAL: Duration = Duration::from_secs(60);
const UNREADABLE_CHARS_MAX: usize = 200;

/// A queue, and as whom it is read.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    url: QueueUrl,
    region: Option<String>,
    credentials: Option<String>,
}

impl Place {
    fn of(settings: &LinkSettings) -> Option<Place> {
        let url = settings.queue.clone()?;
        Some(Place { url, region: settings.region.clone(), credentials: settings.credentials.clone() })
    }
}

/// What has come of a queue since its first link was opened.
#[derive(Clone, Default)]
struct Report {
    messages: u64,
    failures: u64,
    answered: Option<Instant>,
    /// Why it cannot be read now.
    trouble: Option<String>,
}

/// The queues of a server's links.
#[derive(Default)]
pub(crate) struct Queues {
    reports: Mutex<BTreeMap<Place, Report>>,
    changed: Notify,
}

impl Queues {
    /// Links may have come or gone.
    pub fn look(&self) {
        self.changed.notify_one();
    }

    /// Of a link that names one.
    pub fn info(&self, settings: &LinkSettings) -> Option<QueueInfo> {
        let report = self.reports.lock().get(&Place::of(settings)?).cloned().unwrap_or_default();
        Some(QueueInfo {
            messages: report.messages,
            answered_seconds: report.answered.map(|at| at.elapsed().as_secs()),
            trouble: report.trouble,
        })
    }

    /// Figures by queue.
    pub fn figures(&self) -> Vec<(String, [(&'static str, u64); 3])> {
        let figures = |(place, report): (&Place, &Report)| {
            let in_trouble = u64::from(report.trouble.is_some());
            let figures = [("messages", report.messages), ("failures", report.failures), ("in_trouble", in_trouble)];
            (place.url.to_string(), figures)
        };
        self.reports.lock().iter().map(figures).collect()
    }

    fn update(&self, place: &Place, change: impl FnOnce(&mut Report)) {
        if let Some(report) = self.reports.lock().get_mut(place) {
            change(report);
        }
    }

    fn answered(&self, place: &Place, messages: usize) {
        self.update(place, |report| {
            if report.trouble.take().is_some() {
                tracing::info!(queue = %place.url, "a queue of links can be read again");
            }
            report.messages += messages as u64;
            report.answered = Some(Instant::now());
        });
    }

    fn failed(&self, place: &Place, error: &QueueError) {
        self.update(place, |report| {
            if report.trouble.is_none() {
                tracing::warn!(queue = %place.url, %error, "a queue of links cannot be read: it is tried again");
            }
            report.failures += 1;
            report.trouble = Some(error.to_string());
        });
    }
}

/// Read the queues that links of open volumes name, until the server stops.
pub(crate) async fn serve(context: Arc<Context>) {
    let queues = &context.registry.queues;
    let mut tasks = JoinSet::new();
    let mut readers: BTreeMap<Place, AbortHandle> = BTreeMap::new();
    loop {
        let (wanted, are_all) = wanted(&context).await;
        readers.retain(|place, reader| {
            let is_over = are_all && !wanted.contains_key(place);
            if is_over {
                reader.abort();
            }
            !is_over && !reader.is_finished()
        });
        while tasks.try_join_next().is_some() {}
        queues.reports.lock().retain(|place, _| !are_all || wanted.contains_key(place));
        for (place, settings) in wanted {
            let is_read = readers.contains_key(&place);
            let has_room = readers.len() < QUEUES_MAX;
            let mut reports = queues.reports.lock();
            let report = reports.entry(place.clone()).or_default();
            if !is_read && has_room {
                report.trouble = None;
                readers.insert(place.clone(), tasks.spawn(read(context.clone(), place, settings)));
            } else if !is_read {
                report.trouble = Some(format!("this server reads {QUEUES_MAX} queues already: let links share some"));
            }
        }
        tokio::select! {
            _ = queues.changed.notified() => {}
            _ = tokio::time::sleep(LOOK_INTERVAL) => {}
            _ = context.stopping() => return,
        }
    }
}

/// Queues of links, each with a link that names it, and whether these are all: a volume may be just being opened or closed.
async fn wanted(context: &Context) -> (BTreeMap<Place, LinkSettings>, bool) {
    let of_volumes = context.registry.with_each(|_| true, events::PATIENCE, |volume| volume.links_with_queue()).await;
    let are_all = of_volumes.iter().all(Option::is_some);
    let links = of_volumes.into_iter().flatten().flatten();
    (links.filter_map(|settings| Some((Place::of(&settings)?, settings))).collect(), are_all)
}

/// One queue, again and again.
async fn read(context: Arc<Context>, place: Place, settings: LinkSettings) {
    let queues = &context.registry.queues;
    let reader = Reader { context: &context, place: &place, settings: &settings, open: None.into(), told: None.into() };
    let mut turns = FuturesUnordered::new();
    let (mut most, mut pause, mut wait) = (1, PAUSE, Duration::ZERO);
    loop {
        while turns.len() < most {
            turns.push(reader.turn(wait));
        }
        match turns.next().await {
            Some(Ok((messages, took))) => {
                queues.answered(&place, messages);
                (pause, wait) = (PAUSE, WAIT_MAX);
                // A full answer says that there may be more.
                let may_be_more = messages == MESSAGES_MAX && took < TURN_QUICK;
                most = if may_be_more { (most + 1).min(TURNS_MAX) } else { (most - 1).max(1) };
            }
            Some(Err(error)) => {
                queues.failed(&place, &error);
                turns.clear();
                // Whether it can be read again is to be seen when it is asked, not when a message comes.
                (most, wait) = (1, Duration::ZERO);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            None => {}
        }
    }
}

struct Reader<'a> {
    context: &'a Context,
    place: &'a Place,
    settings: &'a LinkSettings,
    /// The queue, and as whom it was opened.
    open: Mutex<Option<(ObjectOptions, Queue)>>,
    /// When a message that cannot be read was last told in the log.
    told: Mutex<Option<Instant>>,
}

impl Reader<'_> {
    /// Opened anew when the credentials have been replaced.
    fn queue(&self) -> Result<Queue, QueueError> {
        let options = self.context.registry.buckets.options(self.settings).map_err(QueueError::Denied)?;
        let mut open = self.open.lock();
        if let Some((of, queue)) = &*open
            && *of == options
        {
            return Ok(queue.clone());
        }
        let queue = Queue::open(&self.place.url, &options);
        *open = Some((options, queue.clone()));
        Ok(queue)
    }

    /// The next messages, until they are deleted: how many, and how long that took.
    async fn turn(&self, wait: Duration) -> Result<(usize, Duration), QueueError> {
        let queue = self.queue()?;
        let began = Instant::now();
        let messages = queue.receive(wait).await?;
        let received = messages.len();
        let count = |result: &str, hints: usize| {
            self.context.metrics.hints.with_label_values(&["queue", result]).inc_by(hints as u64);
        };
        let (mut hints, mut readable, mut over) = (Vec::new(), Vec::new(), Vec::new());
        for message in messages {
            match notification::read(message.body.as_bytes()) {
                Ok(found) => {
                    hints.extend(found);
                    readable.push(message);
                }
                Err(error) => {
                    count("malformed", 1);
                    self.tell_unreadable(&message, &error);
                    over.push(message);
                }
            }
        }
        match events::hear(self.context, None, &hints).await {
            Some(heard) => {
                count("heard", heard);
                count("unrelated", hints.len() - heard);
                over.extend(readable);
            }
            // They come again.
            None => count("missed", hints.len()),
        }
        queue.delete(&over).await?;
        Ok((received, began.elapsed()))
    }

    fn tell_unreadable(&self, message: &Message, error: &NotANotification) {
        let mut last = self.told.lock();
        if last.is_none_or(|at| at.elapsed() >= UNREADABLE_INTERVAL) {
            *last = Some(Instant::now());
            let begins: String = message.body.chars().take(UNREADABLE_CHARS_MAX).collect();
            tracing::warn!(queue = %self.place.url, %error, ?begins, "a message that cannot be read is deleted, like others of the next minute");
        }
    }
}

//! An object store in memory that is slow, that fails before or after it has done what it was asked, and of which a
//! dead process has nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

use crate::history::Random;
use crate::life::Life;
use crate::trace::{Trace, now};

/// How long a request takes that its client had to send several times.
const ASKED_AGAIN: Duration = Duration::from_millis(1_200);
/// How late a write may arrive whose server is dead, in ms.
const LATE_MS_MAX: u64 = 6_000;

/// How the store behaves for now.
#[derive(Clone, Copy, Default)]
pub struct Weather {
    /// Longest that a request takes for the most part, and seldom.
    pub usual_ms: u64,
    pub seldom_ms: u64,
    /// Of 1,000 requests so many fail before anything is done, and so many after.
    pub fails_before: u64,
    pub fails_after: u64,
}

impl Weather {
    pub const FINE: Weather = Weather { usual_ms: 5, seldom_ms: 20, fails_before: 0, fails_after: 0 };
}

/// What is there, and what becomes of requests. Outlives every server.
pub struct Bucket {
    objects: InMemory,
    random: Mutex<Random>,
    weather: Mutex<Weather>,
    sent: Mutex<Vec<Sent>>,
    /// Of writes that arrived while their server was frozen, by number.
    answers: Mutex<BTreeMap<u64, Result<PutResult>>>,
    count: Mutex<u64>,
    trace: Arc<Trace>,
}

/// A write that a server has sent. If the server dies or is frozen, it arrives by and by.
struct Sent {
    number: u64,
    arrives: Duration,
    path: Path,
    payload: PutPayload,
    options: PutOptions,
    life: Life,
}

struct Fate {
    before: Duration,
    after: Duration,
    fails_before: bool,
    fails_after: bool,
}

impl Bucket {
    pub fn new(seed: u64, trace: Arc<Trace>) -> Arc<Bucket> {
        let random = Mutex::new(Random::new(seed));
        Arc::new(Bucket {
            objects: InMemory::new(),
            random,
            weather: Mutex::new(Weather::FINE),
            sent: Mutex::default(),
            answers: Mutex::default(),
            count: Mutex::default(),
            trace,
        })
    }

    pub fn turn(&self, weather: Weather) {
        *self.weather.lock() = weather;
    }

    /// What dead and frozen servers had sent arrives when it is time.
    pub fn arrive(&self) {
        let now = now();
        let is_due = |sent: &mut Sent| (sent.life.is_over() || sent.life.is_frozen()) && sent.arrives <= now;
        let due: Vec<Sent> = self.sent.lock().extract_if(.., is_due).collect();
        for Sent { number, path, payload, options, life, .. } in due {
            let put = self.objects.put_opts(&path, payload, options).now_or_never();
            let put = put.expect("memory answers at once");
            let shown = shown(path.as_ref());
            self.trace.note(format_args!("store late put {shown} {}", if put.is_ok() { "done" } else { "refused" }));
            if !life.is_over() {
                self.answers.lock().insert(number, put);
            }
        }
    }

    /// Answers a number for [`Bucket::arrived`].
    fn send(&self, path: &Path, payload: &PutPayload, options: &PutOptions, life: &Life) -> u64 {
        let (is_on_its_way, late_ms) = {
            let mut random = self.random.lock();
            (random.below(2) == 0, random.below(LATE_MS_MAX))
        };
        let number = {
            let mut count = self.count.lock();
            *count += 1;
            *count
        };
        let sent = Sent {
            number,
            arrives: now() + Duration::from_millis(late_ms),
            path: path.clone(),
            payload: payload.clone(),
            options: options.clone(),
            life: life.clone(),
        };
        is_on_its_way.then(|| self.sent.lock().push(sent));
        number
    }

    fn arrived(&self, number: u64) {
        self.sent.lock().retain(|sent| sent.number != number);
    }

    fn fate(&self) -> Fate {
        let Weather { usual_ms, seldom_ms, fails_before, fails_after } = *self.weather.lock();
        let mut random = self.random.lock();
        let mut wait = || {
            let most = if random.below(20) == 0 { seldom_ms } else { usual_ms };
            Duration::from_millis(random.below(most + 1))
        };
        let (before, after) = (wait(), wait());
        let draw = random.below(1000);
        Fate {
            before,
            after,
            fails_before: draw < fails_before,
            fails_after: (fails_before..fails_before + fails_after).contains(&draw),
        }
    }
}

/// The probe's name has the number of the process.
fn shown(path: &str) -> &str {
    if path.contains("probe") { "probe" } else { path }
}

/// The store as one run of a server sees it.
#[derive(Clone)]
pub struct Objects {
    bucket: Arc<Bucket>,
    life: Life,
}

impl Objects {
    pub fn new(bucket: Arc<Bucket>, life: Life) -> Objects {
        Objects { bucket, life }
    }

    async fn act<T>(&self, what: &'static str, path: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.life.thawed().await;
        if !self.life.acts() {
            return std::future::pending().await;
        }
        let trace = &self.bucket.trace;
        let fate = self.bucket.fate();
        let failed = |when: &str| {
            trace.note(format_args!("store {what} {path} fails {when}"));
            Error::Generic { store: "simulated", source: format!("{what} {path} fails {when}").into() }
        };
        tokio::time::sleep(fate.before).await;
        if self.life.is_over() {
            return std::future::pending().await;
        }
        let is_read = matches!(what, "get" | "list");
        if is_read && (fate.fails_before || fate.fails_after) {
            // The clients of real stores ask again what only looks.
            trace.note(format_args!("store {what} {path} is asked again"));
            tokio::time::sleep(ASKED_AGAIN).await;
        } else if fate.fails_before {
            return Err(failed("before"));
        }
        let result = work.await;
        trace.note(format_args!("store {what} {} {}", shown(path), if result.is_ok() { "done" } else { "refused" }));
        tokio::time::sleep(fate.after).await;
        self.life.thawed().await;
        if self.life.is_over() {
            return std::future::pending().await;
        }
        if fate.fails_after && !is_read { Err(failed("after")) } else { result }
    }
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Objects")
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated objects")
    }
}

#[async_trait]
impl ObjectStore for Objects {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if self.life.is_over() {
            return std::future::pending().await;
        }
        let number = self.bucket.send(path, &payload, &options, &self.life);
        let put = async {
            self.bucket.arrived(number);
            if let Some(answer) = self.bucket.answers.lock().remove(&number) {
                return answer;
            }
            self.bucket.objects.put_opts(path, payload, options).await
        };
        let result = self.act("put", path.as_ref(), put).await;
        // Also one that failed before it arrived.
        self.bucket.arrived(number);
        result
    }

    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.act("put in parts", path.as_ref(), self.bucket.objects.put_multipart_opts(path, options)).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.act("get", path.as_ref(), self.bucket.objects.get_opts(path, options)).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let delete = move |path: Result<Path>| {
            let store = store.clone();
            async move {
                let path = path?;
                let name = path.to_string();
                let one = stream::iter([Ok(path)]).boxed();
                let work = async { store.bucket.objects.delete_stream(one).next().await.expect("one answer") };
                store.act("delete", &name, work).await
            }
        };
        paths.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let all = async move {
            let name = prefix.as_ref().map(Path::to_string).unwrap_or_default();
            let work = async { Ok(store.bucket.objects.list(prefix.as_ref()).collect::<Vec<_>>().await) };
            store.act("list", &name, work).await.unwrap_or_else(|error| vec![Err(error)])
        };
        stream::once(all).flat_map(stream::iter).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let name = prefix.map(Path::to_string).unwrap_or_default();
        self.act("list", &name, self.bucket.objects.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.act("copy", from.as_ref(), self.bucket.objects.copy_opts(from, to, options)).await
    }
}

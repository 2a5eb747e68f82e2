//! Links of directories with buckets, for people.

use atoll_link::{BucketError, Capabilities, Freshness, LinkSettings, Queue};
use atoll_types::InodeId;
use atoll_volume::{HintReport, LinkError, LinkReport, Published, Volume};
use atoll_wire::{HintsInfo, Link, LinkInfo, PublishedInfo, QueueInfo, UnpublishedInfo};

use crate::names;
use crate::registry::Registry;

type Result<T> = std::result::Result<T, String>;

/// Links in one reply, what waits in one of them, and objects in one: each fits in a frame with the longest texts.
const LINKS_MAX: usize = 64;
const WAITING_MAX: usize = 100;
pub(crate) const PUBLISHED_MAX: usize = 128;
/// A longer path is not shown, a longer text cut.
const PATH_BYTES_MAX: usize = 4096;
const TEXT_BYTES_MAX: usize = 1024;
/// Of a bucket, an endpoint or a region.
const NAME_BYTES_MAX: usize = 1024;

/// What a link is to be.
fn settings(link: Link) -> Result<LinkSettings> {
    fn named<T: std::str::FromStr<Err = String> + Default>(what: &str, name: Option<String>) -> Result<T> {
        let parsed = name.map(|name| name.parse()).transpose();
        Ok(parsed.map_err(|error| format!("--{what}: {error}"))?.unwrap_or_default())
    }
    let Link { url, endpoint, region, credentials, freshness, recheck_seconds, publish, on_conflict, queue, budget } =
        link;
    let parsed = LinkSettings::parse(&url)?;
    if let Some(endpoint) = &endpoint
        && !endpoint.starts_with("https://")
        && !endpoint.starts_with("http://")
    {
        return Err(format!("`{endpoint}` is no endpoint: use https://HOST or http://HOST:PORT"));
    }
    let long = [Some(&parsed.bucket), endpoint.as_ref(), region.as_ref()].into_iter().flatten();
    if long.into_iter().any(|name| name.len() > NAME_BYTES_MAX) {
        return Err(format!("the bucket, the endpoint or the region is longer than {NAME_BYTES_MAX} bytes"));
    }
    if let Some(name) = &credentials {
        names::check("set of credentials", name)?;
    }
    let freshness = Freshness::parse(freshness.as_deref().unwrap_or(Freshness::default().name()), recheck_seconds)?;
    if queue.is_some() && freshness.recheck_seconds().is_none() {
        return Err(format!("--queue is for --freshness events, and this link is {}", freshness.name()));
    }
    Ok(LinkSettings {
        endpoint,
        region,
        credentials,
        freshness,
        publish: named("publish", publish)?,
        on_conflict: named("on-conflict", on_conflict)?,
        queue: queue.map(|url| url.try_into()).transpose().map_err(|error| format!("--queue: {error}"))?,
        budget: match budget {
            None => parsed.budget,
            Some(0) => None,
            some => some,
        },
        ..parsed
    })
}

/// Why a bucket cannot be linked, and what to do.
fn refusal(settings: &LinkSettings, error: BucketError) -> String {
    let url = settings.url();
    match error {
        BucketError::Denied(text) if text.starts_with("NoSuchBucket") => format!(
            "{url}: there is no such bucket: make it first, or see whether --endpoint and --region are those where it is"
        ),
        BucketError::Denied(text) => format!(
            "{url}: access is denied ({text}): a link needs to list, read, write and delete objects below its prefix; the \
             credentials are those of --credentials, or AWS_* of the server"
        ),
        BucketError::Away(text) => {
            format!(
                "{url}: the bucket does not answer ({text}): --endpoint, or AWS_ENDPOINT_URL of the server, says where it is"
            )
        }
        error => format!("{url}: {error}"),
    }
}

fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.push('…');
    }
    text
}

/// What a bucket can do, by name.
fn abilities(capabilities: Capabilities) -> Vec<(String, bool)> {
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(capabilities) else { return Vec::new() };
    fields.into_iter().map(|(name, can)| (name, can == true)).collect()
}

fn shown(settings: &LinkSettings) -> Link {
    Link {
        url: settings.url(),
        endpoint: settings.endpoint.clone(),
        region: settings.region.clone(),
        credentials: settings.credentials.clone(),
        freshness: Some(settings.freshness.name().to_owned()),
        recheck_seconds: settings.freshness.recheck_seconds(),
        publish: Some(settings.publish.to_string()),
        on_conflict: Some(settings.on_conflict.to_string()),
        queue: settings.queue.as_ref().map(|url| url.to_string()),
        budget: Some(settings.budget.unwrap_or(0)),
    }
}

fn heard(report: HintReport) -> HintsInfo {
    HintsInfo {
        hints: report.hints,
        last_seconds: report.last.map(|since| since.as_secs()),
        asked_in_doubt: report.asked_in_doubt,
        asked_in_time: report.asked_in_time,
    }
}

fn published(published: Published) -> PublishedInfo {
    let Published { key, version } = published;
    PublishedInfo { key: key.to_string(), etag: cut(version.etag), version: version.id.map(cut) }
}

impl Registry {
    /// Serve the links of a volume that is open now.
    pub(crate) fn start_links(&self, volume: &Volume) {
        volume.start_links(self.buckets.connect());
        self.queues.look();
    }

    /// The settings of a link whose bucket and queue can be used so.
    async fn usable(&self, link: Link) -> Result<LinkSettings> {
        let settings = settings(link)?;
        if let Some(name) = &settings.credentials
            && self.buckets.credentials.get(name).is_none()
        {
            return Err(format!("no credentials `{name}` here: `atoll link credentials set {name}` keeps some"));
        }
        self.buckets.probe(&settings).await.map_err(|error| refusal(&settings, error))?;
        if let Some(url) = &settings.queue {
            let queue = Queue::open(url, &self.buckets.options(&settings)?);
            queue.probe().await.map_err(|error| format!("{url}: {error}"))?;
        }
        Ok(settings)
    }

    /// Make a volume, linked as a whole if `link` says with what.
    pub async fn create_linked(
        &self,
        name: &str,
        durability: &str,
        compression: &str,
        encrypt: bool,
        link: Option<Link>,
    ) -> Result<()> {
        let settings = match link {
            Some(link) => Some(self.usable(link).await?),
            None => None,
        };
        self.create(name, durability, compression, encrypt).await?;
        let Some(settings) = settings else { return Ok(()) };
        // A crash before it is linked leaves a volume, which can be linked or deleted.
        let linked = self.get_volume(name).await?.link(InodeId::ROOT, settings).await;
        self.queues.look();
        let Err(error) = linked else { return Ok(()) };
        let left = self.delete(name).await.err().map(|why| format!("; the volume is there: {why}"));
        Err(format!("volume `{name}`: {error}{}", left.unwrap_or_default()))
    }

    /// Link an empty directory.
    pub async fn link(&self, volume: &str, directory: InodeId, link: Link) -> Result<LinkInfo> {
        let open = self.get_volume(volume).await?;
        let settings = self.usable(link).await?;
        open.link(directory, settings).await.map_err(|error| error.to_string())?;
        self.queues.look();
        self.link_status(volume, directory).await
    }

    /// Links behind a number, without what waits.
    pub async fn links(&self, volume: &str, after: InodeId) -> Result<Vec<LinkInfo>> {
        let open = self.get(volume).await?;
        let mut links = open.links().await;
        links.sort_by_key(|link| link.root);
        links.retain(|link| link.root > after);
        links.truncate(LINKS_MAX);
        links.iter_mut().for_each(|link| link.waiting.clear());
        self.described(volume, &open, links).await
    }

    /// One link, with the first of what waits.
    pub async fn link_status(&self, volume: &str, directory: InodeId) -> Result<LinkInfo> {
        let open = self.get(volume).await?;
        let mut links = open.links().await;
        links.retain(|link| link.root == directory);
        links.iter_mut().for_each(|link| link.waiting.truncate(WAITING_MAX));
        let described = self.described(volume, &open, links).await?;
        described.into_iter().next().ok_or_else(|| LinkError::NotLinked.to_string())
    }

    async fn described(&self, name: &str, volume: &Volume, links: Vec<LinkReport>) -> Result<Vec<LinkInfo>> {
        let directories: Vec<InodeId> = links.iter().map(|link| link.root).collect();
        let paths = volume.directory_paths(&directories).await;
        let mut paths = paths.map_err(|errno| format!("volume `{name}`: {errno}"))?;
        let waiting = |file: atoll_volume::Unpublished| UnpublishedInfo {
            inode: file.inode,
            key: file.key.map(|key| key.to_string()),
            why: cut(file.why),
        };
        let described = links.into_iter().map(|link| LinkInfo {
            directory: link.root,
            path: paths.remove(&link.root).filter(|path| path.len() <= PATH_BYTES_MAX),
            link: shown(&link.settings),
            unpublished: link.unpublished as u64,
            deleting: link.deleting as u64,
            conflicts: link.conflicts,
            written: link.traffic.written,
            sent: link.traffic.sent,
            copied: link.traffic.copied,
            held_back: link.held_back as u64,
            trouble: link.trouble.map(cut),
            hints: link.hints.map(heard),
            queue: self.queues.info(&link.settings).map(|info| QueueInfo { trouble: info.trouble.map(cut), ..info }),
            capabilities: self.buckets.capabilities(&link.settings).map(abilities).unwrap_or_default(),
            waiting: link.waiting.into_iter().map(waiting).collect(),
        });
        Ok(described.collect())
    }

    pub async fn detach(&self, volume: &str, directory: InodeId, discard: bool) -> Result<()> {
        let detached = self.get_volume(volume).await?.detach(directory, discard).await;
        self.queues.look();
        detached.map_err(|error| error.to_string())
    }

    /// Until a file, or all below a directory, is in its bucket as it is now.
    pub async fn publish(&self, volume: &str, inode: InodeId) -> Result<Vec<PublishedInfo>> {
        match self.get_volume(volume).await?.publish(inode).await {
            Ok(objects) => Ok(objects.into_iter().map(published).collect()),
            Err(LinkError::NotLinked) => {
                Err(format!("this is in no linked directory: `atoll link list {volume}` shows them"))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Refuse to make a second volume that would publish into the buckets of the first.
    pub(crate) async fn check_without_links(&self, name: &str, volume: &Volume) -> Result<()> {
        let links = volume.links().await;
        let Some(link) = links.first() else { return Ok(()) };
        Err(format!(
            "`{name}` has {} linked directories, the first with {}: two volumes would publish into one bucket; detach them \
             first (`atoll link list`), or copy the files",
            links.len(),
            link.settings.url()
        ))
    }

    /// Links of every open volume.
    pub async fn link_reports(&self) -> Vec<(String, Vec<LinkReport>)> {
        let mut reports = Vec::new();
        for (name, volume) in self.open_volumes() {
            reports.push((name, volume.links().await));
        }
        reports
    }
}

#[cfg(test)]
mod tests {
    use atoll_link::{OnConflict, Publish};

    use super::*;

    fn link(url: &str) -> Link {
        Link { url: url.into(), ..Link::default() }
    }

    #[test]
    fn a_link_is_as_it_is_asked_for_and_by_default() {
        let plain = settings(link("s3://bucket/prefix")).unwrap();
        assert_eq!(plain, LinkSettings::parse("s3://bucket/prefix").unwrap());
        let all = Link {
            url: "s3://bucket/prefix/".into(),
            endpoint: Some("https://host:9000".into()),
            region: Some("eu-central-1".into()),
            credentials: Some("name".into()),
            freshness: Some("events".into()),
            recheck_seconds: Some(5),
            publish: Some("manual".into()),
            on_conflict: Some("fail".into()),
            queue: Some("http://host:9324/0/queue".into()),
            budget: Some(5 << 20),
        };
        let parsed = settings(all.clone()).unwrap();
        assert_eq!(
            (parsed.freshness, parsed.publish, parsed.on_conflict),
            (Freshness::Events { recheck_seconds: 5 }, Publish::Manual, OnConflict::Fail)
        );
        assert_eq!((parsed.budget, shown(&parsed)), (Some(5 << 20), all));
        let boundless = Link { budget: Some(0), ..link("s3://bucket") };
        assert_eq!(settings(boundless.clone()).unwrap().budget, None);
        assert_eq!(shown(&settings(boundless).unwrap()).budget, Some(0));
    }

    #[test]
    fn what_can_be_no_link_is_refused_with_what_would() {
        let cases = [
            (link("bucket/prefix"), "s3://"),
            (link("s3://"), "s3://BUCKET"),
            (link(&format!("s3://{}", "b".repeat(2000))), "longer"),
            (Link { endpoint: Some("host:9000".into()), ..link("s3://bucket") }, "https://"),
            (Link { credentials: Some("a/b".into()), ..link("s3://bucket") }, "name"),
            (Link { freshness: Some("soon".into()), ..link("s3://bucket") }, "strong, events, frozen"),
            (Link { recheck_seconds: Some(5), ..link("s3://bucket") }, "--freshness events"),
            (
                Link { freshness: Some("events".into()), recheck_seconds: Some(0), ..link("s3://bucket") },
                "1 to 86400 seconds",
            ),
            (Link { queue: Some("https://host/queue".into()), ..link("s3://bucket") }, "--freshness events"),
            (
                Link { freshness: Some("events".into()), queue: Some("queue".into()), ..link("s3://bucket") },
                "--queue: this is no queue",
            ),
            (Link { publish: Some("never".into()), ..link("s3://bucket") }, "on-close"),
            (Link { on_conflict: Some("lose".into()), ..link("s3://bucket") }, "keep-both"),
        ];
        for (bad, hint) in cases {
            let error = settings(bad).unwrap_err();
            assert!(error.contains(hint), "{error}");
        }
    }

    #[test]
    fn a_missing_bucket_and_a_denied_one_are_told_apart() {
        let settings = LinkSettings::parse("s3://bucket").unwrap();
        let text = |error| refusal(&settings, error);
        assert!(text(BucketError::Denied("NoSuchBucket: none".into())).contains("make it first"));
        assert!(text(BucketError::Denied("AccessDenied".into())).contains("--credentials"));
        assert!(text(BucketError::Away("refused".into())).contains("--endpoint"));
    }

    #[test]
    fn capabilities_are_told_by_name() {
        let all = abilities(Capabilities { conditional_create: true, ..Capabilities::default() });
        assert!(all.contains(&("conditional_create".to_owned(), true)), "{all:?}");
        assert!(all.contains(&("versions".to_owned(), false)), "{all:?}");
    }
}

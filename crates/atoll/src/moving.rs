//! `atoll volume export` and `import`.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;

use atoll_client::{Admin, ClientConfig};
use atoll_wire::{AdminReply, AdminRequest, volume_parts};
use indicatif::ProgressBar;
use serde_json::json;

use crate::checking::watched_on;
use crate::export_file::{Reader, Writer};
use crate::snapshots::name_of_now;
use crate::{Result, print, unexpected};

async fn connect(config: &ClientConfig) -> Result<Admin> {
    Admin::connect(config).await.map_err(|error| error.to_string())
}

async fn ask(admin: &Admin, request: AdminRequest) -> Result<AdminReply> {
    admin.call(request).await.map_err(|error| error.to_string())
}

/// A file that is there when it is whole; `-` is the output.
enum Target<'a> {
    Output(io::StdoutLock<'static>),
    File { file: File, path: &'a Path },
}

impl<'a> Target<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        if path == Path::new("-") {
            return Ok(Target::Output(io::stdout().lock()));
        }
        let file = File::create_new(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Target::File { file, path })
    }

    /// Nothing is left of one that is not whole.
    fn end(self, result: Result<u64>) -> Result<u64> {
        let Target::File { file, path } = self else { return result };
        let synced = result.and_then(|records| {
            file.sync_all().map_err(|error| format!("{}: {error}", path.display()))?;
            Ok(records)
        });
        if synced.is_err() {
            let _ = fs::remove_file(path);
        }
        synced
    }
}

impl Write for Target<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Target::Output(output) => output.write(bytes),
            Target::File { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Target::Output(output) => output.flush(),
            Target::File { file, .. } => file.flush(),
        }
    }
}

pub async fn export(config: &ClientConfig, volume: &str, path: &Path, as_json: bool) -> Result<()> {
    let (volume, named) = volume_parts(volume);
    let mut target = Target::open(path)?;
    let is_file = matches!(target, Target::File { .. });
    let admin = connect(config).await;
    let exported = match &admin {
        Ok(admin) => export_from(admin, volume, named, &mut target).await,
        Err(error) => Err(error.clone()),
    };
    let records = target.end(exported)?;
    if is_file {
        match as_json {
            true => print(&json!({"volume": volume, "snapshot": named, "file": path, "records": records})),
            false => println!("{records} records of volume `{volume}` in {}", path.display()),
        }
    }
    Ok(())
}

/// Without a snapshot: of one that is made for it.
async fn export_from(admin: &Admin, volume: &str, named: Option<&str>, target: &mut Target<'_>) -> Result<u64> {
    let (snapshot, volume) =
        (named.map_or_else(|| format!("export-{}", name_of_now()), str::to_owned), volume.to_owned());
    if named.is_none() {
        ask(admin, AdminRequest::SnapshotCreate { volume: volume.clone(), name: snapshot.clone() }).await?;
    }
    let written = write(admin, &volume, &snapshot, target).await;
    if named.is_none() {
        let deleted = ask(admin, AdminRequest::SnapshotDelete { volume: volume.clone(), name: snapshot.clone() }).await;
        if let Err(error) = deleted {
            eprintln!("atoll: the snapshot `{volume}@{snapshot}` of this export is left: {error}");
        }
    }
    written
}

async fn write(admin: &Admin, volume: &str, snapshot: &str, target: &mut Target<'_>) -> Result<u64> {
    let text = |error: io::Error| error.to_string();
    let (volume, snapshot) = (volume.to_owned(), snapshot.to_owned());
    let request = AdminRequest::Export { volume: volume.clone(), snapshot: snapshot.clone() };
    let AdminReply::Exported(source) = ask(admin, request).await? else { return Err(unexpected()) };
    let mut writer = Writer::new(BufWriter::new(target), &source).map_err(text)?;
    // Draws on a terminal only.
    let bar = ProgressBar::new_spinner();
    let mut from = None;
    loop {
        let request = AdminRequest::ExportRecords { volume: volume.clone(), snapshot: snapshot.clone(), from };
        let AdminReply::Records { records, next } = ask(admin, request).await? else { return Err(unexpected()) };
        if !records.is_empty() {
            writer.add(&records).map_err(text)?;
        }
        bar.inc(records.len() as u64);
        bar.set_message(format!("{} records", bar.position()));
        from = next;
        if from.is_none() {
            break;
        }
    }
    bar.finish_and_clear();
    Ok(writer.end().map_err(text)?.1)
}

/// What an import is to be, where it is not to be as what was exported.
pub struct Wishes {
    pub store: Option<String>,
    pub durability: Option<String>,
    pub compression: Option<String>,
    pub encrypt: bool,
}

pub async fn import(config: &ClientConfig, path: &Path, name: String, wishes: Wishes, as_json: bool) -> Result<()> {
    let text = |error: io::Error| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(text)?;
    let (mut reader, mut source) = Reader::new(BufReader::new(file)).map_err(text)?;
    if let Some(store) = wishes.store {
        source.store = store;
    }
    let admin = connect(config).await?;
    let request = AdminRequest::Import {
        name: name.clone(),
        durability: wishes.durability.unwrap_or_else(|| source.durability.clone()),
        compression: wishes.compression.unwrap_or_else(|| source.compression.clone()),
        encrypt: wishes.encrypt,
        source,
    };
    ask(&admin, request).await?;
    loop {
        let records = reader.next().map_err(text)?;
        if records.is_empty() {
            break;
        }
        ask(&admin, AdminRequest::ImportRecords(records)).await?;
    }
    let reply = watched_on(&admin, AdminRequest::ImportEnd).await?;
    let AdminReply::Imported { inodes, bytes } = reply else { return Err(unexpected()) };
    match as_json {
        true => print(&json!({"volume": name, "inodes": inodes, "bytes": bytes})),
        false => println!("volume `{name}`: {inodes} inodes, {bytes} bytes"),
    }
    Ok(())
}

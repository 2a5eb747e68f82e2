//! A folder as an object store that also honours If-Match on PUT, which [`LocalFileSystem`] does not.
//!
//! SlateDB needs it where it deletes old versions of its manifest: who is behind must learn that versions are gone, or
//! it takes the one it has for the newest and writes beside the truth. The condition holds among the
//! writers of one process; a folder never has two, the volume's lock sees to that.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use tokio::sync::Mutex;

#[derive(Debug)]
pub(crate) struct Folder {
    files: Arc<LocalFileSystem>,
    /// Held from the comparison until what was compared is replaced.
    update: Mutex<()>,
}

impl Folder {
    pub fn new(files: LocalFileSystem) -> Self {
        Folder { files: Arc::new(files), update: Mutex::default() }
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Folder {
    async fn put_opts(&self, path: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        let PutMode::Update(expected) = &options.mode else {
            return self.files.put_opts(path, payload, options).await;
        };
        let _update = self.update.lock().await;
        let found = match self.files.head(path).await {
            Ok(meta) => meta.e_tag,
            Err(Error::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        if found.is_none() || found != expected.e_tag {
            let source = format!("it is {found:?}, not {:?}", expected.e_tag).into();
            return Err(Error::Precondition { path: path.to_string(), source });
        }
        options.mode = PutMode::Overwrite;
        self.files.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.files.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.files.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.files.get_ranges(path, ranges).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.files.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.files.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::UpdateVersion;

    use super::*;

    #[tokio::test]
    async fn an_update_wants_the_version_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = Folder::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
        let path = Path::from("a/b");
        let update = async |version: UpdateVersion, content: &'static str| {
            let options = PutOptions::from(PutMode::Update(version));
            store.put_opts(&path, PutPayload::from_static(content.as_bytes()), options).await.map(UpdateVersion::from)
        };
        let first = UpdateVersion::from(store.put(&path, PutPayload::from_static(b"1")).await.unwrap());
        let second = update(first.clone(), "2").await.unwrap();
        let late = update(first.clone(), "3").await;
        assert!(matches!(late, Err(Error::Precondition { .. })), "{late:?}");
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "2");
        update(second.clone(), "4").await.unwrap();
        store.delete(&path).await.unwrap();
        let gone = update(second, "5").await;
        assert!(matches!(gone, Err(Error::Precondition { .. })), "{gone:?}");
    }
}

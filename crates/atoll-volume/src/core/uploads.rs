//! Uploads in parts that are under way, or may be left in a bucket.
//!
//! Rule: an upload is recorded, and that is durable, before anything of it is sent. Who finds the record without the upload, after a crash or
//! when the bucket did not answer, aborts it: parts that nobody completes are not seen in the bucket, and cost. Only what is recorded is
//! aborted: uploads of others are none of ours.

use std::collections::BTreeMap;

use atoll_link::ObjectKey;
use atoll_types::InodeId;

use super::Core;
use crate::format;

struct Upload {
    object: ObjectKey,
    is_under_way: bool,
}

/// By link and id.
#[derive(Default)]
pub(crate) struct Uploads(BTreeMap<(InodeId, String), Upload>);

impl Uploads {
    /// An earlier authority had begun it.
    pub fn left(&mut self, link: InodeId, id: String, object: ObjectKey) {
        self.0.insert((link, id), Upload { object, is_under_way: false });
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Those that are to be aborted.
    pub fn to_abort(&self) -> impl Iterator<Item = (InodeId, &str)> {
        self.0.iter().filter(|(_, upload)| !upload.is_under_way).map(|((link, id), _)| (*link, &**id))
    }

    /// The object of one that is to be aborted.
    pub fn object(&self, link: InodeId, id: &str) -> Option<&ObjectKey> {
        let upload = self.0.get(&(link, id.to_owned()))?;
        (!upload.is_under_way).then_some(&upload.object)
    }

    /// Ids of all of a link.
    pub fn of(&self, link: InodeId) -> Vec<String> {
        let all = self.0.range((link, String::new())..).take_while(|((of, _), _)| *of == link);
        all.map(|((_, id), _)| id.clone()).collect()
    }
}

impl Core {
    /// Answers with what must be durable before anything is sent.
    pub fn begin_upload(&mut self, link: InodeId, id: &str, object: &ObjectKey) -> u64 {
        let upload = Upload { object: object.clone(), is_under_way: true };
        self.links.uploads.0.insert((link, id.to_owned()), upload);
        self.write(format::upload_key(link, id), Some(format::encode_upload(object)));
        self.order();
        self.ordered()
    }

    /// It is completed or aborted.
    pub fn drop_upload(&mut self, link: InodeId, id: &str) {
        if self.links.uploads.0.remove(&(link, id.to_owned())).is_some() {
            self.write(format::upload_key(link, id), None);
            self.order();
        }
    }

    /// Nobody works at it any more, and it may be there.
    pub fn leave_upload(&mut self, link: InodeId, id: &str) {
        if let Some(upload) = self.links.uploads.0.get_mut(&(link, id.to_owned())) {
            upload.is_under_way = false;
            self.links.work.notify_one();
        }
    }
}

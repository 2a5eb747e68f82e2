//! Uploads in parts that a server has left behind.

use std::fs;

use crate::boto::Boto;
use crate::faulty_s3::{Fault, Proxy};
use crate::harness::*;
use crate::links::linked;

/// Some parts.
const LARGE: usize = 40 << 20;

/// Nobody sees what was sent of an object, and it costs: the next server gives it up, and nothing of others.
#[test]
fn what_a_killed_server_has_sent_of_an_object_is_given_up() {
    let mut site = Site::with_s3();
    let way = Proxy::start(site.s3_port());
    let plain = linked(&mut site, &["--endpoint", &format!("http://127.0.0.1:{}", way.port)]);
    let mut boto = Boto::of(&site);
    boto.begin_parts("data/foreign", b"part");
    let foreign = [("data/foreign".to_owned(), 1)];
    let mount = site.mount("m").join("data");
    way.set(Fault::Slow);
    let bytes = vec![b'x'; LARGE];
    fs::write(mount.join("large"), &bytes).unwrap();
    eventually("a part is there", || boto.uploads().iter().any(|(key, parts)| key == "data/large" && *parts > 0));
    site.kill();
    // Of what was on its way to the bucket, the last has come; an upload that was completed so is none any more.
    way.set(Fault::None);
    site.start();
    let large = mount.join("large");
    site.atoll(["publish".as_ref(), large.as_os_str()]).must_succeed();
    assert!(plain.get("data/large").unwrap() == bytes);
    eventually("the upload is given up", || boto.uploads() == foreign);
}

//! boto3, the S3 client that most programs use: a process that does what it is told (`tests/s3/boto`).

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::harness::*;

/// A client of the site's bucket.
pub struct Boto {
    process: Child,
    /// Closed to end it.
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Boto {
    pub fn of(site: &Site) -> Boto {
        let mut process = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/s3/boto"))
            .envs(site.environment.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/s3/boto starts");
        let commands = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().expect("piped standard output"));
        Boto { process, commands, answers }
    }

    #[track_caller]
    fn ask(&mut self, command: Value) -> Value {
        let commands = self.commands.as_mut().expect("it runs");
        writeln!(commands, "{command}").expect("boto3 takes a command");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("boto3 answers");
        let mut answer: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("boto3 answers {line:?}"));
        assert!(answer["error"].is_null(), "boto3, {}: {}", command["do"], answer["error"]);
        answer["answer"].take()
    }

    pub fn put(&mut self, key: &str, bytes: &[u8]) {
        self.ask(json!({"do": "put", "key": key, "text": text(bytes)}));
    }

    /// The same as an upload in parts of 5 MiB.
    pub fn put_parts(&mut self, key: &str, bytes: &[u8]) {
        self.ask(json!({"do": "put_parts", "key": key, "text": text(bytes)}));
    }

    /// An upload of which one part is there, and that nobody completes.
    pub fn begin_parts(&mut self, key: &str, bytes: &[u8]) {
        self.ask(json!({"do": "begin_parts", "key": key, "text": text(bytes)}));
    }

    /// Key and number of parts of each upload that is not completed.
    pub fn uploads(&mut self) -> Vec<(String, u64)> {
        serde_json::from_value(self.ask(json!({"do": "uploads"}))).expect("uploads")
    }

    /// Within the bucket.
    pub fn copy(&mut self, source: &str, key: &str) {
        self.ask(json!({"do": "copy", "source": source, "key": key}));
    }

    /// With one request.
    pub fn delete(&mut self, keys: &[String]) {
        self.ask(json!({"do": "delete", "keys": keys}));
    }

    /// `None`: there is no such object.
    pub fn get(&mut self, key: &str) -> Option<Vec<u8>> {
        bytes(&self.ask(json!({"do": "get", "key": key})))
    }

    /// Keys that begin with a prefix, listed in pages of so many, as they come.
    pub fn keys(&mut self, prefix: &str, page: u64) -> Vec<String> {
        serde_json::from_value(self.ask(json!({"do": "keys", "prefix": prefix, "page": page}))).expect("keys")
    }

    /// A put that tells what it has replaced.
    pub fn swap(&mut self, key: &str, new: &[u8]) -> Option<Vec<u8>> {
        bytes(&self.ask(json!({"do": "swap", "key": key, "text": text(new)})))
    }
}

/// All bytes here are ASCII.
fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("text")
}

fn bytes(answer: &Value) -> Option<Vec<u8>> {
    answer.as_str().map(|text| text.as_bytes().to_vec())
}

impl Drop for Boto {
    fn drop(&mut self) {
        drop(self.commands.take());
        if std::thread::panicking() || wait_bounded(&mut self.process).is_none() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

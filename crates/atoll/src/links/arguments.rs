//! The command line of links.

use std::path::PathBuf;

use atoll_link::{Freshness, OnConflict, Publish};
use atoll_wire::Link;
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};

/// `atoll link s3://BUCKET/PREFIX VOLUME:/PATH` is short for `atoll link add`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct LinkArguments {
    #[command(subcommand)]
    command: Option<LinkCommand>,
    #[arg(value_name = "s3://BUCKET/PREFIX", required = true)]
    link: Option<String>,
    /// A directory that is empty, or not there: it is made.
    #[arg(value_name = "VOLUME:/PATH", required = true)]
    target: Option<String>,
    #[command(flatten)]
    options: LinkOptions,
}

impl LinkArguments {
    /// What is meant, in short or in full.
    pub fn command(self) -> Option<LinkCommand> {
        let LinkArguments { command, link, target, options } = self;
        command.or_else(|| Some(LinkCommand::Add(LinkAdd { link: link?, target: target?, options })))
    }
}

#[derive(Subcommand)]
pub enum LinkCommand {
    /// Link a directory with a bucket.
    Add(LinkAdd),
    /// The links of a volume: how they are kept, what is not published, conflicts, what the bucket can do.
    List { volume: String },
    /// One link, with the files that are not published, and why.
    Status {
        #[arg(value_name = "VOLUME:/PATH")]
        target: String,
    },
    /// Publish what is not published, and make the linked directory an empty one again. The bucket stays as it is then.
    Detach {
        #[arg(value_name = "VOLUME:/PATH")]
        target: String,
        /// Publish nothing more: what is not published, or can be no object, is lost.
        #[arg(long)]
        discard: bool,
    },
    /// Keys of buckets that the server keeps, by name.
    #[command(subcommand)]
    Credentials(CredentialsCommand),
}

#[derive(Subcommand)]
pub enum CredentialsCommand {
    /// Keep an access key under NAME, in place of one that is kept: links that name it use it from then on. It is read from a
    /// file, or from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN.
    Set {
        name: String,
        /// With lines `aws_access_key_id = …` and `aws_secret_access_key = …`; `-` is the input.
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Names of what is kept. Keys are never shown.
    List,
    /// Links that name it cannot use their buckets from then on.
    Delete { name: String },
}

#[derive(Args, Clone)]
pub struct LinkAdd {
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    pub link: String,
    /// A directory that is empty, or not there: it is made.
    #[arg(value_name = "VOLUME:/PATH")]
    pub target: String,
    #[command(flatten)]
    pub options: LinkOptions,
}

#[derive(Args, Clone, Default)]
#[group(requires = "link")]
pub struct LinkOptions {
    /// Of the S3 server, as https://HOST [default: the server's own, AWS_ENDPOINT_URL]
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// [default: the server's own, AWS_REGION]
    #[arg(long)]
    pub region: Option<String>,
    /// A name from `atoll link credentials list` [default: the server's own, AWS_*]
    #[arg(long, value_name = "NAME")]
    pub credentials: Option<String>,
    /// strong: every open, stat and listing asks the bucket; events: what is known is believed until a notification names it, or for
    /// --recheck; frozen: nobody else changes it [default: strong]
    #[arg(long, value_parser = PossibleValuesParser::new(Freshness::NAMES))]
    pub freshness: Option<String>,
    /// Of --freshness events: for how long what the bucket has confirmed is believed when no notification comes, 1 to 86400
    /// [default: 60]
    #[arg(long, value_name = "SECONDS", requires = "freshness")]
    pub recheck: Option<u32>,
    /// Of --freshness events: the URL of an SQS queue to which the bucket sends its notifications. The server reads it with the keys of
    /// the link, and nobody else may
    #[arg(long, value_name = "URL", requires = "freshness")]
    pub queue: Option<String>,
    /// When a written file becomes an object: when it is closed; before fsync returns, too; when it has not changed for 5 s; when it is
    /// asked for [default: on-close]
    #[arg(long, value_parser = PossibleValuesParser::new(Publish::NAMES))]
    pub publish: Option<String>,
    /// What becomes of a file that was changed in the bucket, too: the bucket's keeps the name and ours goes to
    /// `.atoll/conflicts`; ours replaces the bucket's; ours is dropped; ours stays unpublished [default: keep-both]
    #[arg(long, value_parser = PossibleValuesParser::new(OnConflict::NAMES))]
    pub on_conflict: Option<String>,
    /// How many bytes of one file may be sent within ten minutes beyond what was written to it: then a file that is rewritten all the time
    /// waits. 0: any number [default: 1 GiB]
    #[arg(long, value_name = "BYTES")]
    pub budget: Option<u64>,
}

impl LinkOptions {
    pub fn of(self, url: String) -> Link {
        let LinkOptions {
            endpoint,
            region,
            credentials,
            freshness,
            recheck: recheck_seconds,
            queue,
            publish,
            on_conflict,
            budget,
        } = self;
        Link { url, endpoint, region, credentials, freshness, recheck_seconds, publish, on_conflict, queue, budget }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Command, VolumeCommand};

    fn parse(line: &str) -> Result<Command, String> {
        let parsed = Arguments::try_parse_from(line.split(' '));
        parsed.map(|arguments| arguments.command).map_err(|error| error.to_string())
    }

    fn added(line: &str) -> LinkAdd {
        match parse(line) {
            Ok(Command::Link(arguments)) => match arguments.command() {
                Some(LinkCommand::Add(add)) => add,
                _ => panic!("`{line}` is another command"),
            },
            Ok(_) => panic!("`{line}` is another command"),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_link_is_added_in_short_and_in_full() {
        for line in ["atoll link s3://b/p v:/d", "atoll link add s3://b/p v:/d"] {
            let add = added(&format!("{line} --publish fsync --endpoint http://h:1 --on-conflict fail --budget 5"));
            assert_eq!((add.link.as_str(), add.target.as_str()), ("s3://b/p", "v:/d"));
            let link = add.options.of(add.link);
            assert_eq!((link.publish.as_deref(), link.on_conflict.as_deref()), (Some("fsync"), Some("fail")));
            assert_eq!((link.endpoint.as_deref(), link.freshness, link.region), (Some("http://h:1"), None, None));
            assert_eq!(link.budget, Some(5));
            // As it is typed, options come first or last.
            assert_eq!(added(&line.replace("s3:", "--freshness frozen s3:")).options.freshness.unwrap(), "frozen");
        }
        let listens = added("atoll link s3://b/p v:/d --freshness events --recheck 5 --queue http://h/q");
        let listens = listens.options.of(listens.link);
        assert_eq!((listens.recheck_seconds, listens.queue.as_deref()), (Some(5), Some("http://h/q")));
        for bad in
            ["atoll link", "atoll link s3://b", "atoll link add s3://b", "atoll link s3://b v:/d --publish never"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_of_links_are_commands() {
        let command = |line| match parse(line) {
            Ok(Command::Link(arguments)) => arguments.command().unwrap(),
            Ok(_) => panic!("`{line}` is another command"),
            Err(error) => panic!("{error}"),
        };
        assert!(matches!(command("atoll link list v"), LinkCommand::List { volume } if volume == "v"));
        assert!(matches!(command("atoll --json link status v:/d"), LinkCommand::Status { target } if target == "v:/d"));
        assert!(matches!(command("atoll link detach v:/d --discard"), LinkCommand::Detach { discard: true, .. }));
        let set = command("atoll link credentials set n --file -");
        assert!(matches!(set, LinkCommand::Credentials(CredentialsCommand::Set { file: Some(_), .. })));
        // A secret among the arguments would be in every list of processes.
        assert!(parse("atoll link credentials set n secret").is_err());
    }

    #[test]
    fn a_volume_is_linked_as_it_is_made_and_options_of_links_need_a_link() {
        let Ok(Command::Volume(VolumeCommand::Create { link: Some(link), link_options, .. })) =
            parse("atoll volume create v --link s3://b/p --freshness frozen")
        else {
            panic!("it is not parsed");
        };
        assert_eq!((link.as_str(), link_options.freshness.as_deref()), ("s3://b/p", Some("frozen")));
        assert!(parse("atoll volume create v --freshness frozen").is_err());
        assert!(parse("atoll volume create v").is_ok());
    }
}

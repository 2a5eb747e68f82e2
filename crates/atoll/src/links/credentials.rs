//! `atoll link credentials`.

use std::io::Read;
use std::path::Path;

use atoll_client::ClientConfig;
use atoll_wire::{AdminReply, AdminRequest, BucketCredentials};
use serde_json::json;

use super::arguments::CredentialsCommand;
use crate::{Result, admin, print, unexpected};

/// A file with keys is shorter, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

const NAMES: [&str; 3] = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"];

pub async fn run(config: &ClientConfig, command: CredentialsCommand, as_json: bool) -> Result<()> {
    match command {
        CredentialsCommand::Set { name, file } => {
            let credentials = match &file {
                Some(path) => read(path).map_err(|error| format!("{}: {error}", path.display()))?,
                None => credentials(|name| std::env::var(name.to_uppercase()).ok().filter(|text| !text.is_empty()))
                    .map_err(|error| format!("environment: {error}; or give --file"))?,
            };
            admin(config, AdminRequest::CredentialsSet { name: name.clone(), credentials }).await?;
            if as_json {
                print(&json!({"name": name}));
            }
        }
        CredentialsCommand::List => {
            let AdminReply::Credentials(names) = admin(config, AdminRequest::CredentialsList).await? else {
                return Err(unexpected());
            };
            match as_json {
                true => print(&names.iter().map(|name| json!({"name": name})).collect()),
                false => names.iter().for_each(|name| println!("{name}")),
            }
        }
        CredentialsCommand::Delete { name } => {
            admin(config, AdminRequest::CredentialsDelete { name }).await?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<BucketCredentials> {
    let mut text = String::new();
    let read = match path.to_str() {
        Some("-") => std::io::stdin().take(FILE_BYTES_MAX).read_to_string(&mut text),
        _ => std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text)),
    };
    read.map_err(|error| error.to_string())?;
    parse(&text)
}

/// The keys in lines `NAME = VALUE`, as in `~/.aws/credentials` or a file with environment variables. No message quotes a line.
fn parse(text: &str) -> Result<BucketCredentials> {
    let mut found: [Option<&str>; 3] = [None; 3];
    for line in text.lines() {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((name, value)) = line.split_once('=') else { continue };
        let name = name.trim().to_lowercase();
        let Some(at) = NAMES.iter().position(|known| *known == name) else { continue };
        if found[at].is_some() {
            return Err(format!("it has more than one {name}: give a file with the keys of one profile"));
        }
        found[at] = Some(value.trim().trim_matches(['"', '\'']));
    }
    credentials(|name| NAMES.iter().position(|known| *known == name).and_then(|at| found[at]).map(str::to_owned))
}

fn credentials(value: impl Fn(&str) -> Option<String>) -> Result<BucketCredentials> {
    let [id, secret, token] = NAMES;
    let needed = |name: &str| value(name).ok_or_else(|| format!("{name} is missing (in capitals, too)"));
    Ok(BucketCredentials {
        access_key_id: needed(id)?,
        secret_access_key: needed(secret)?,
        session_token: value(token),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_other_tools_write_them() {
        let profile = "# mine\n[default]\naws_access_key_id = ID\naws_secret_access_key=a=b/c+\nregion = x\n";
        let variables = "export AWS_ACCESS_KEY_ID=\"ID\"\nexport AWS_SECRET_ACCESS_KEY='a=b/c+'\n";
        for text in [profile, variables] {
            let keys = parse(text).unwrap();
            assert_eq!((keys.access_key_id.as_str(), keys.secret_access_key.as_str()), ("ID", "a=b/c+"));
            assert_eq!(keys.session_token, None);
        }
        let token = parse(&format!("{profile}aws_session_token = T\n")).unwrap();
        assert_eq!(token.session_token.as_deref(), Some("T"));
    }

    #[test]
    fn keys_that_are_not_whole_or_not_of_one_are_refused_and_not_quoted() {
        let two = "aws_access_key_id=half\naws_secret_access_key=half\n[other]\naws_access_key_id=half\n";
        for (bad, hint) in [("", "aws_access_key_id"), ("aws_access_key_id=half", "secret"), (two, "more than one")] {
            let error = parse(bad).map(|_| ()).unwrap_err();
            assert!(error.contains(hint) && !error.contains("half"), "{error}");
        }
    }
}

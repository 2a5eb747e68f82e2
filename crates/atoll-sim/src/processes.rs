//! The processes: a server and clients, as their programs start them.

use std::sync::Arc;
use std::time::Duration;

use atoll_client::{Admin, Client, ClientConfig, Kernel, OldName, ServerAddress};
use atoll_object::ObjectRoot;
use atoll_server::{Server, ServerConfig};
use atoll_types::InodeId;
use atoll_wire::AdminRequest;
use atoll_wire::clock::Clock;

use crate::hands::Hands;
use crate::objects::Objects;
use crate::world::{Role, VOLUME, World};

/// The read cache of the server's volume, which keeps everything or nothing: what else it drops depends on the machine.
const CACHE_BYTES: [u64; 2] = [0, 1 << 30];
/// A slow store and a server that dies three times can keep clients waiting for a minute: that is no defect.
const REPLY_TIMEOUT: Duration = Duration::from_secs(150);
/// Pause of whoever starts a server or a client anew that did not start.
const PAUSE: Duration = Duration::from_millis(100);
const ADMIN_BYTES: usize = 64 << 10;

pub async fn serve(world: Arc<World>, number: usize) -> turmoil::Result {
    let (life, role) = (world.server_life(number), world.role(number));
    // A rival would listen when it has started.
    let incoming = (role != Role::Rival).then(|| world.network.listen(life.clone()));
    let objects = ObjectRoot {
        store: Arc::new(Objects::new(world.bucket.clone(), life)),
        folder: None,
        url: "simulated://bucket".into(),
    };
    let server = loop {
        let config = ServerConfig {
            data: world.disk(number),
            clock: Clock(Some(Arc::new({
                let world = world.clone();
                move || world.server_clocks(number)
            }))),
            objects: Some(objects.clone()),
            cache_bytes_max: CACHE_BYTES[(world.seed % 2) as usize],
            ..ServerConfig::default()
        };
        match Server::start(config).await {
            Ok(server) => break server,
            Err(error) => world.trace.note(format_args!("server does not start: {error}")),
        }
        tokio::time::sleep(PAUSE).await;
    };
    world.trace.note(format_args!("server {number} started"));
    let Some(mut incoming) = incoming else {
        world.defect("a second server has started on the disk of one that is frozen".into());
        return std::future::pending().await;
    };
    let server = Arc::new(server);
    if role == Role::Successor {
        attach(&world, &server).await;
    }
    while let Some(stream) = incoming.recv().await {
        tokio::spawn(server.serve(stream));
    }
    // The address is another server's. It goes on with the connections that it has.
    std::future::pending().await
}

/// Take the volume over, as an operator does, unless that was done before.
async fn attach(world: &Arc<World>, server: &Arc<Server>) {
    let server = server.clone();
    let dial: atoll_client::Dialer = Arc::new(move || {
        let (ours, theirs) = tokio::io::duplex(ADMIN_BYTES);
        tokio::spawn(server.serve(theirs));
        let (reader, writer) = tokio::io::split(ours);
        Box::pin(async move { Ok((Box::new(reader) as _, Box::new(writer) as _)) })
    });
    let config = ClientConfig { dialer: Some(dial), ..ClientConfig::new(ServerAddress::Unix("simulated".into())) };
    loop {
        let attached = match Admin::connect(&config).await {
            Ok(admin) => admin.call(AdminRequest::VolumeAttach { name: VOLUME.into() }).await.map(drop),
            Err(error) => Err(error),
        };
        match attached {
            Ok(()) => return,
            Err(error) if error.to_string().contains("is here already") => return,
            Err(error) => world.trace.note(format_args!("not taken over: {error}")),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A kernel that keeps nothing: it asks each time, and has dropped what it is told to drop.
struct ForgetfulKernel;

impl Kernel for ForgetfulKernel {
    fn keeps_names(&self) -> bool {
        true
    }

    fn drop_names(&self, _: InodeId, _: Vec<OldName>, _: bool, _: bool) {}

    fn settles(&self, _: Vec<InodeId>) -> bool {
        true
    }

    fn drop_all_names(&self) {}

    fn drop_attributes(&self, _: InodeId, _: Option<InodeId>, _: bool) {}

    fn drop_everything(&self, _: Vec<InodeId>, _: Vec<InodeId>) {}
}

pub fn client_config(world: &Arc<World>, client: usize) -> ClientConfig {
    let (network, life) = (world.network.clone(), world.client_life(client));
    let dial: atoll_client::Dialer = Arc::new(move || Box::pin(network.clone().dial(client, life.clone())));
    let of_client = world.clone();
    ClientConfig {
        dialer: Some(dial),
        clocks: Some(Arc::new(move || of_client.clocks(client))),
        reply_timeout: REPLY_TIMEOUT,
        ..ClientConfig::new(ServerAddress::Unix("simulated".into()))
    }
}

pub async fn work(world: Arc<World>, client: usize) -> turmoil::Result {
    let config = client_config(&world, client);
    Hands::found(&world, client, &config).await;
    let opened = loop {
        match Client::open(config.clone(), VOLUME).await {
            Ok(opened) => break opened,
            Err(error) => world.trace.note(format_args!("client {client} does not start: {error}")),
        }
        tokio::time::sleep(PAUSE).await;
    };
    world.trace.note(format_args!("client {client} started"));
    opened.attach(Arc::new(ForgetfulKernel));
    Arc::new(Hands::new(world, client, opened)).follow().await
}

//! gRPC dial-out telemetry: the element streams notifications to a collector in a pod, which acknowledges them.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::{PATIENCE, bracketed};
use crate::lab::Namespace;

/// The generated messages and service.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    reason = "generated from the .proto file, which has the documentation"
)]
pub mod proto {
    tonic::include_proto!("sluice.telemetry.v1");
}

use proto::{
    Acknowledgement, Notification, Update,
    dial_out_client::DialOutClient,
    dial_out_server::{DialOut, DialOutServer},
};

/// The port that vendors commonly use for gRPC dial-out telemetry.
pub const PORT: u16 = 57400;
/// Time between two notifications of the element.
const PERIOD: Duration = Duration::from_millis(20);
/// Notifications and acknowledgements that wait for the network.
const QUEUE: usize = 16;

/// A notification as the collector received it.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    /// The address that the stream came from.
    pub source: SocketAddr,
    /// What came.
    pub notification: Notification,
}

/// A collector in a pod; ends on drop.
#[derive(Debug)]
pub struct Collector {
    received: Arc<Mutex<Vec<Received>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    /// Listens on [`PORT`] over both families.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let listener = namespace
            .run(|| std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)))
            .with_context(|| format!("cannot listen on TCP port {PORT} in {}", namespace.name()))?;
        listener.set_nonblocking(true)?;
        let received = Arc::new(Mutex::new(Vec::new()));
        let service = DialOutServer::new(Sink { received: Arc::clone(&received) });
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = runtime()?;
        let thread = namespace.spawn(move || {
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("the runtime takes a listener");
                let serve =
                    Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
                // Streams that are open when the collector ends are cut, as when a pod dies.
                tokio::select! {
                    _ = serve => (),
                    _ = stopped => (),
                }
            });
        });
        Ok(Self { received, stop: Some(stop), thread: Some(thread) })
    }

    /// Everything received so far.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        lock(&self.received).clone()
    }

    /// Everything received since the last time.
    #[must_use]
    pub fn take(&self) -> Vec<Received> {
        std::mem::take(&mut *lock(&self.received))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Streams `count` notifications from the element to `target` and waits until the last one is acknowledged.
/// `name` is the element's name in them.
pub fn publish(element: &Namespace, target: IpAddr, name: &str, count: u64) -> Result<()> {
    let endpoint = format!("http://{}:{PORT}", bracketed(target));
    // The runtime and with it every socket is made inside the namespace.
    element.run(|| {
        runtime()?.block_on(async {
            tokio::time::timeout(PATIENCE, stream(endpoint.clone(), name.to_owned(), count))
                .await
                .with_context(|| format!("telemetry to {endpoint} took longer than {} s", PATIENCE.as_secs()))?
        })
    })
}

/// Streams for as long as the collector is there, from a thread in the element. What ends the stream is its result.
pub fn publish_on(element: &Namespace, target: IpAddr, name: &str) -> JoinHandle<Result<()>> {
    let (endpoint, name) = (format!("http://{}:{PORT}", bracketed(target)), name.to_owned());
    element.spawn(move || runtime()?.block_on(stream(endpoint, name, u64::MAX)))
}

async fn stream(endpoint: String, name: String, count: u64) -> Result<()> {
    let mut client =
        DialOutClient::connect(endpoint.clone()).await.with_context(|| format!("cannot connect to {endpoint}"))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        for sequence in 1..=count {
            // The stream is gone when the collector is: the acknowledgements tell.
            if sender.send(notification(&name, sequence)).await.is_err() {
                return;
            }
            tokio::time::sleep(PERIOD).await;
        }
    });
    let mut answers = client.publish(ReceiverStream::new(receiver)).await?.into_inner();
    let mut last = 0;
    while let Some(answer) = answers.message().await? {
        last = answer.sequence;
    }
    ensure!(last == count, "the collector acknowledged {last} of {count} notifications");
    Ok(())
}

fn notification(element: &str, sequence: u64) -> Notification {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let counter =
        |name: &str, value| Update { path: format!("/interfaces/interface[name=eth0]/state/counters/{name}"), value };
    Notification {
        element: element.to_owned(),
        sequence,
        timestamp: i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX),
        update: vec![counter("in-octets", sequence * 1500), counter("out-octets", sequence * 900)],
    }
}

/// The service: keeps what comes and acknowledges it.
struct Sink {
    received: Arc<Mutex<Vec<Received>>>,
}

#[tonic::async_trait]
impl DialOut for Sink {
    type PublishStream = Pin<Box<dyn Stream<Item = Result<Acknowledgement, Status>> + Send>>;

    async fn publish(
        &self,
        request: Request<Streaming<Notification>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let source = request.remote_addr().ok_or_else(|| Status::internal("the connection has no address"))?;
        let source = SocketAddr::new(source.ip().to_canonical(), source.port());
        let received = Arc::clone(&self.received);
        let answers = request.into_inner().map(move |notification| {
            let notification = notification?;
            let sequence = notification.sequence;
            lock(&received).push(Received { source, notification });
            Ok(Acknowledgement { sequence })
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot build a runtime")
}

fn lock(received: &Mutex<Vec<Received>>) -> MutexGuard<'_, Vec<Received>> {
    received.lock().unwrap_or_else(PoisonError::into_inner)
}

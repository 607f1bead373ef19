#include "server/base/signals.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <unistd.h>

#include "server/base/log.h"

/* Static: the thread outlives whoever started it. */
static sigset_t set;
static sem_t came;
static _Atomic int first;
static _Atomic bool keep; /* the next signal */

static void *take_signals(void *arg)
{
    (void)arg;
    for (;;) {
        int sig;
        if (sigwait(&set, &sig) != 0)
            continue;
        if (sig == SIGTERM && atomic_load(&first) != 0)
            continue;
        if (!atomic_exchange(&keep, false)) {
            log_text("wring: stopped\n");
            _exit(1);
        }
        atomic_store(&first, sig);
        sem_post(&came);
    }
    return NULL;
}

int signals_take(struct err *e)
{
    pthread_t thread;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    sem_init(&came, 0, 0);
    errno = pthread_create(&thread, NULL, take_signals, NULL);
    if (errno != 0)
        return err_errno(e, ERR_IO, "the thread that takes signals cannot be started");
    pthread_detach(thread);
    return 0;
}

void signals_keep(void)
{
    atomic_store(&keep, true);
}

int signals_wait(void)
{
    while (sem_wait(&came) != 0) {
    }
    return atomic_load(&first);
}

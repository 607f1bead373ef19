/* The version, in one place. */
#ifndef WRING_SERVER_VERSION_H
#define WRING_SERVER_VERSION_H

#define WRING_VERSION "0.1.0"

#endif

/* The chat page, embedded: the file's bytes become a read-only object of the program. */
#include <stddef.h>

extern const char http_page[];
extern const size_t http_page_size;

__asm__(".pushsection .rodata\n"
        ".balign 16\n"
        ".global http_page\n"
        ".type http_page, @object\n"
        "http_page:\n"
        ".incbin \"api/chat.html\"\n"
        "http_page_end:\n"
        ".byte 0\n"
        ".size http_page, . - http_page\n"
        ".balign 8\n"
        ".global http_page_size\n"
        ".type http_page_size, @object\n"
        "http_page_size:\n"
        ".quad http_page_end - http_page\n"
        ".size http_page_size, 8\n"
        ".popsection\n");

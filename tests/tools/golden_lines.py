"""The 10,000 varied lines on which tokenizers are compared: golden_tokens.py imports this."""
import gzip
import json
import pathlib
import random
import unicodedata

N = 10000
PROSE = ["austen-emma", "bible-kjv", "carroll-alice", "melville-moby_dick", "milton-paradise",
         "shakespeare-hamlet"]

# Everyday sentences, written for this file.
SENTENCES = """
Guten Morgen, wie spät ist es? Die Straße ist heute früh gesperrt, außer für Fußgänger.
Où est la bibliothèque ? L'été dernier, nous avons mangé des crêpes à la plage ; c'était délicieux.
¿Dónde está el niño pequeño? ¡Qué sorpresa! Mañana iremos al médico a las ocho y media.
Não consigo encontrar as chaves do carro; talvez estejam no balcão da cozinha.
Perché la città è così tranquilla? Oggi c'è un po' di vento, ma domani pioverà.
Hoe laat vertrekt de trein naar Groningen? Ik heb één kaartje voor mijn zoon nodig.
Jag skulle vilja köpa två biljetter till Malmö, tack. Kött, fisk och grönsaker är dyra.
Hvor mange øl har du på lager? Været på Røros er kaldt, men vi går på ski likevel.
Missä on lähin apteekki? Pöydällä on kymmenen lasia vettä ja yksi hyvä kirja.
Gdzie mogę kupić świeży chleb? Żółta łódź płynie powoli po spokojnej rzece, źdźbło trawy drży.
Kde je nejbližší nádraží? Příliš mnoho lidí čeká na zpožděný vlak do Plzně.
Hol van a legközelebbi gyógyszertár? Az öreg hölgy tűzpiros esernyőt őriz a szekrényben.
Unde este gara? Mâine dimineață o să plouă, așa că ia-ți umbrela și ghetele.
Bugün hava çok güzel; ağaçların altında oturup İstanbul'u ve Boğaz'ı seyrettik.
Hôm nay trời đẹp quá, chúng tôi đi chợ mua rau, cá và một ít hoa quả tươi.
Где находится ближайшая аптека? Завтра утром поезд отправляется в семь часов пятнадцать минут.
Де знаходиться вокзал? Сьогодні ввечері ми їдемо до Києва, щоб побачити друзів.
Къде е пощата? Утре ще вали, затова вземи чадъра и топлите обувки.
Πού είναι η τράπεζα; Αύριο το πρωί θα πάμε στη θάλασσα με τα παιδιά και τον σκύλο.
איפה תחנת הרכבת? מחר בבוקר נלך לשוק לקנות לחם טרי, גבינה וזיתים.
أين تقع المكتبة؟ غدًا صباحًا سنذهب إلى السوق لشراء الخبز والفواكه الطازجة.
کتابخانه کجاست؟ فردا صبح با قطار به اصفهان می‌رویم تا دوستانمان را ببینیم.
ڈاک خانہ کہاں ہے؟ کل صبح ہم بازار سے تازہ پھل اور سبزیاں خریدیں گے۔
पुस्तकालय कहाँ है? कल सुबह हम ताज़ी सब्ज़ियाँ और फल खरीदने बाज़ार जाएँगे।
গ্রন্থাগার কোথায়? কাল সকালে আমরা বাজার থেকে তাজা মাছ আর সবজি কিনব।
நூலகம் எங்கே உள்ளது? நாளை காலை நாங்கள் சந்தைக்குச் சென்று பழங்கள் வாங்குவோம்.
గ్రంథాలయం ఎక్కడ ఉంది? రేపు ఉదయం మేము తాజా కూరగాయలు కొనడానికి వెళ్తాము.
ห้องสมุดอยู่ที่ไหน พรุ่งนี้เช้าเราจะไปตลาดเพื่อซื้อผักและผลไม้สด
ຫ້ອງສະໝຸດຢູ່ໃສ ມື້ອື່ນເຊົ້າພວກເຮົາຈະໄປຕະຫຼາດ
စာကြည့်တိုက် ဘယ်မှာလဲ မနက်ဖြန် မနက် ဈေးသွားမယ်
តើបណ្ណាល័យនៅឯណា ព្រឹកស្អែកយើងនឹងទៅផ្សារ
სად არის ბიბლიოთეკა? ხვალ დილით ბაზარში წავალთ ახალი ხილის საყიდლად.
Որտե՞ղ է գրադարանը։ Վաղն առավոտյան կգնանք շուկա թարմ միրգ գնելու։
ቤተ መጻሕፍቱ የት ነው? ነገ ጠዋት ትኩስ ፍራፍሬ ለመግዛት ወደ ገበያ እንሄዳለን።
图书馆在哪里？明天早上我们去市场买新鲜的蔬菜和水果，然后一起做饭。
圖書館在哪裡？明天早上我們坐高鐵去臺北，票價是新臺幣一千四百九十元。
図書館はどこですか？明日の朝、市場へ新鮮な野菜と果物を買いに行きます。カタカナもテストしよう！
도서관이 어디에 있나요? 내일 아침에 시장에 가서 신선한 채소와 과일을 살 거예요.
Maktaba iko wapi? Kesho asubuhi tutakwenda sokoni kununua matunda na mboga.
The quick brown fox can't jump; it's what they'd've called "lazy", isn't it? WE'LL SEE, I'M SURE HE'D SAY.
""".strip().split("\n")

CODE = """
static inline int max(int a, int b) { return a > b ? a : b; }
for (size_t i = 0; i < n; ++i) { sum += x[i] * y[i]; }
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
SELECT u.id, COUNT(*) AS n FROM users u LEFT JOIN orders o ON o.user_id = u.id GROUP BY 1 HAVING n >= 3;
const f = async ({ a, b = 2, ...rest }) => (await Promise.all(rest.map(g)))?.[0] ?? null;
<div class="card" style="margin:0 auto;"><a href="/x?y=1&amp;z=2#top">Link &rarr;</a></div>
{"name": "x", "values": [1, 2.5e-3, -0, true, null], "nested": {"a\\u00e9": "\\n\\t"}}
fn main() -> Result<(), Box<dyn Error>> { println!("{:?}", args().skip(1).collect::<Vec<_>>()); Ok(()) }
if __name__ == "__main__": raise SystemExit(main(sys.argv[1:]))
\\begin{equation} \\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2} \\end{equation}
find . -name '*.c' -print0 | xargs -0 -n1 -P"$(nproc)" clang-format -i 2>&1 >/dev/null
commit 3f2a9c1b7e\tAuthor: A. N. Other <other@example.org>\r
-    return x;\r\n+    return x ** 2  # squared\r\n
std::map<std::string, std::vector<std::unique_ptr<Node>>> table;
:root { --accent: #3b82f6; } @media (max-width: 640px) { .nav > li:nth-child(2n+1) { display: none } }
""".strip().split("\n")

NUMBERS = ["0", "7", "42", "1234567890", "3.14159", "1,234,567.89", "-273.15", "1e-10", "0xDEADBEEF", "1/2", "½", "¾",
           "x²", "H₂O", "Ⅷ", "②", "٣٤٥", "१२३", "１２３", "2024-02-29T23:59:60Z", "+49 (0)30 123456", "100%", "$9.99",
           "€5,–", "12:34:56", "v1.2.3-rc4", "192.168.0.1/24", "2³⁴", "万", "𝟙𝟚𝟛", "৳৫০"]
WORDS = ["can't", "I'M", "we'LL", "they’re", "d'accord", "'s", "'S", "x's", "'tis", "rock'n'roll", "'ſ", "'re'", "''ll", "o'Ve",
         "ǅungla", "ﬁne", "ﬂag", "Ångström", "naïve", "straẞe", "IJssel", "K", "İi", "ıI", "Σίσυφος", "ªº", "ʰʲ", "café",
         "cafe\u0301", "A\u030a", "n\u0303", "o\u0302\u0323", "\u1112\u1161\u11ab", "\u0958", "\u2126", "\u212b", "\ufa0c", "e\u0301\u0327",
         "_snake_case_", "CamelCaseHTTPServer", "a.b.c", "...", "?!", "--", "—", "…", "«»", "“q”", "(a)", "[x]", "{y}", "@me",
         "#tag", "a/b\\c", "~", "^", "`", "|", "§ 5", "©", "™", "№", "\u00ad", "\u200b", "\u200d", "\ufeff", "\u2060"]
SPACES = [" ", "  ", "   ", "\t", "\t\t", "\n", "\n\n", "\r\n", "\r", "\v", "\f", "\u00a0", "\u3000", "\u2003", "\u2028",
          "\u2029", "\u0085", "\u180e", "\u1680", "\u202f", "\u205f", " " * 8, " " * 40, "\x1c", "\x1f"]
EMOJI = ["😀", "🤷🏽\u200d♀️", "👨\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "🇩🇪", "🇯🇵🇫🇷", "1️⃣", "❤️", "☺", "👍🏿", "🧑🏻\u200d🚀", "🫠", "🐈\u200d⬛", "✔", "➡️",
         "🎉🎉🎉", "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", "♟", "㊗️", "🅰️", "©️"]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<s>",
           "</s>", "<unk>", "<0x41>", "<repo_name>", "<empty_output>", "<|im_", "end|>", "<|reserved_special_token_1|>",
           "<|reserved_special_token_12|>", "<|", "|>", "[INST]"]
BROKEN = [b"\x80", b"\xbf\xbf", b"\xc0\xaf", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xed\xa0\xbd\xed\xb8\x80",
          b"\xf4\x90\x80\x80", b"\xf5", b"\xff\xfe", b"\xfe", b"\xe0\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xc3(", b"\xe4\xbd",
          b"\xff" * 60]
BLOCKS = [(0x21, 0x7E), (0xA1, 0x17F), (0x180, 0x24F), (0x250, 0x2FF), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x52F),
          (0x531, 0x58F), (0x591, 0x5F4), (0x600, 0x6FF), (0x700, 0x7BF), (0x900, 0x97F), (0x980, 0x9FF), (0xA00, 0xAFF),
          (0xB80, 0xC7F), (0xD00, 0xDFF), (0xE00, 0xEFF), (0xF00, 0xFFF), (0x1000, 0x109F), (0x10A0, 0x10FF), (0x1100, 0x11FF),
          (0x1200, 0x139F), (0x13A0, 0x167F), (0x1780, 0x17FF), (0x1800, 0x18AA), (0x1E00, 0x1FFF), (0x2000, 0x206F),
          (0x2070, 0x218F), (0x2190, 0x23FF), (0x2460, 0x2580), (0x2582, 0x27BF), (0x2C00, 0x2DFF), (0x2E80, 0x2FDF),
          (0x3001, 0x30FF), (0x3131, 0x33FF), (0x4E00, 0x9FFF), (0xA000, 0xA4CF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF),
          (0xFB00, 0xFDFF), (0xFE20, 0xFFEF), (0x10000, 0x100FF), (0x10330, 0x1034F), (0x12000, 0x123FF), (0x1D100, 0x1D7FF),
          (0x1F300, 0x1F6FF), (0x1F900, 0x1F9FF), (0x20000, 0x2A6DF), (0xE0100, 0xE01EF)]


def assigned(c):
    return unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")


class Maker:
    def __init__(self, data):
        self.r = random.Random(20240229)
        data = pathlib.Path(data)
        self.prose = []
        for name in PROSE:
            text = (data / "corpora/gutenberg" / (name + ".txt")).read_bytes().decode("utf-8", "replace")
            self.prose.append(text.replace("\r", "").split("\n"))
        tasks = [json.loads(x) for x in gzip.open(data / "eval/HumanEval.jsonl.gz")]
        self.code = [t["prompt"] + t["canonical_solution"] for t in tasks]

    def some(self, what, lo, hi, join=None):
        seps = [join] if join is not None else ["", " ", " ", "  ", "\n", "-"]
        out = ""
        for _ in range(self.r.randint(lo, hi)):
            out += self.r.choice(what) + self.r.choice(seps)
        return out

    def book(self):
        lines = self.r.choice(self.prose)
        i = self.r.randrange(len(lines) - 4)
        return "\n".join(lines[i:i + self.r.randint(1, 3)])

    def source(self):
        if self.r.random() < 0.3:
            return self.some(CODE, 1, 2, "\n")
        text = self.r.choice(self.code)
        i = self.r.randrange(len(text))
        return text[i:i + self.r.randint(10, 160)]

    def sentence(self):
        words = self.r.choice(SENTENCES)
        if self.r.random() < 0.5:
            a = self.r.randrange(len(words))
            return words[a:a + self.r.randint(3, 60)]
        other = self.r.choice(SENTENCES).split(" ")
        return self.r.choice([words, words.upper(), words + " " + " ".join(self.r.sample(other, min(4, len(other))))])

    def block(self):
        out = ""
        for _ in range(self.r.randint(1, 3)):
            lo, hi = self.r.choice(BLOCKS)
            for _ in range(self.r.randint(1, 12)):
                c = self.r.randint(lo, hi)
                if assigned(c):
                    out += chr(c)
            out += self.r.choice(["", " ", "1", "a"])
        return out

    def repeat(self):
        what = self.r.choice(["a", "=", "-", " ", "\n", "ab", "0", "1", "é", "的", "😀", "\t", "!", "A", "ха", "lol", "/*", "\u0301", "."])
        return self.r.choice(["", "x", " "]) + what * self.r.randint(2, 130) + self.r.choice(["", "x", "\n"])

    def broken(self):
        parts = []
        for _ in range(self.r.randint(1, 4)):
            b = self.r.choice([self.sentence, self.block, self.book])().encode()[:self.r.randint(1, 50)]
            parts += [b, self.r.choice(BROKEN)]
        if self.r.random() < 0.2:
            parts.append(bytes(self.r.randrange(1, 256) for _ in range(self.r.randint(1, 40))))
        return b"".join(parts)

    def any(self):
        kinds = [
            (26, self.book), (14, self.source), (15, self.sentence), (15, self.block),
            (6, lambda: self.some(EMOJI + WORDS, 1, 6)),
            (6, lambda: self.some(SPACES + ["a", "b.", "1"], 2, 9, "")),
            (5, lambda: self.some(NUMBERS + SPACES[:3], 1, 6)),
            (6, lambda: self.some(WORDS, 1, 7)),
            (4, self.repeat), (3, lambda: self.some(SPECIAL + WORDS + SPACES[:6], 1, 7)),
        ]
        if self.r.random() < 0.09:
            b = self.broken()
        else:
            b = self.r.choices([k for _, k in kinds], [w for w, _ in kinds])[0]().encode()
        # U+2581 is left out: sentencepiece takes it for a space, and a tokenizer that gives every text back cannot.
        return b.replace(b"\xe2\x96\x81", b"")


def make(data):
    m = Maker(data)
    return [m.any() for _ in range(N)]

"""The world's drugs and procedures: what conditions bring with them.

Drugs are ATC codes with short descriptions of our own; procedures are CPT numbers without descriptions.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Drug:
    """A drug: `starts` gives, for each indication, the probability of starting it when that indication is coded.

    A `lasting` drug, once started, comes back nearly every time one of its indications is coded; another is given only
    in the encounter (each day of a hospital stay). `favoured_by` names the phenotypes that respond to it, and so get
    it far more often than others do; with none, all get it alike.
    """

    code: str
    description: str
    starts: dict[str, float]
    favoured_by: tuple[str, ...] = ()
    lasting: bool = True


@dataclasses.dataclass(frozen=True)
class Procedure:
    """A procedure: its probability when each of `triggers` is coded, in the encounter types `where`."""

    code: str
    triggers: dict[str, float]
    where: tuple[str, ...] = ("OUTPATIENT",)


_M, _C, _R, _N, _O, _I, _K, _H = (
    "METABOLIC",
    "CARDIAC",
    "RESPIRATORY",
    "NEUROPSYCHIATRIC",
    "ONCOLOGIC",
    "INFLAMMATORY",
    "RENAL",
    "ROBUST",
)

DRUGS = (
    Drug("C09AA03", "Lisinopril", {"I10": 0.45, "I50.9": 0.4, "E11.22": 0.4}, (_M, _H)),
    Drug("C08CA01", "Amlodipine", {"I10": 0.45}, (_K, _O)),
    Drug("C09CA01", "Losartan", {"I10": 0.45, "E11.22": 0.2}, (_R, _I)),
    Drug("C03AA03", "Hydrochlorothiazide", {"I10": 0.35}, (_N, _H)),
    Drug("C07AB02", "Metoprolol", {"I10": 0.3, "I25.10": 0.5, "I48.91": 0.5, "I50.9": 0.5}, (_C,)),
    Drug("C10AA05", "Atorvastatin", {"E78.5": 0.5, "I25.10": 0.5, "I63.9": 0.5}, (_C, _M, _K)),
    Drug("C10AA07", "Rosuvastatin", {"E78.5": 0.5, "I25.10": 0.3}, (_H, _R, _N)),
    Drug("C10AX09", "Ezetimibe", {"E78.5": 0.12, "I25.10": 0.1}),
    Drug("B01AC06", "Aspirin", {"I25.10": 0.6, "I73.9": 0.4, "I21.4": 0.8, "G45.9": 0.6}),
    Drug("B01AC04", "Clopidogrel", {"I21.4": 0.7, "I73.9": 0.2, "I63.9": 0.5}),
    Drug("B01AA03", "Warfarin", {"I48.91": 0.3, "I26.99": 0.3}, (_K,)),
    Drug("B01AF02", "Apixaban", {"I48.91": 0.45, "I26.99": 0.5}, (_C, _M, _R, _N, _O, _I, _H)),
    Drug("C03CA01", "Furosemide", {"I50.9": 0.6, "I50.23": 0.8, "N18.4": 0.3}),
    Drug("C03DA01", "Spironolactone", {"I50.22": 0.5, "K74.60": 0.5}),
    Drug("C09DX04", "Sacubitril and valsartan", {"I50.22": 0.4}),
    Drug("C01DA02", "Glyceryl trinitrate", {"I25.10": 0.2, "I21.4": 0.4}),
    Drug("C01BD01", "Amiodarone", {"I48.20": 0.3}),
    Drug("A10BA02", "Metformin", {"E11.9": 0.7, "R73.03": 0.1}),
    Drug("A10BB12", "Glimepiride", {"E11.9": 0.2}, (_I, _R, _N)),
    Drug("A10BK03", "Empagliflozin", {"E11.9": 0.2, "I50.22": 0.4}, (_C, _K)),
    Drug("A10BJ06", "Semaglutide", {"E11.9": 0.15, "E66.9": 0.05}, (_M,)),
    Drug("A10AE04", "Insulin glargine", {"E11.65": 0.5, "E11.22": 0.15}),
    Drug("A10AB05", "Insulin aspart", {"E11.65": 0.2}),
    Drug("H03AA01", "Levothyroxine", {"E03.9": 0.85}),
    Drug("A11CC05", "Colecalciferol", {"E55.9": 0.7, "M81.0": 0.4}),
    Drug("B03BA01", "Cyanocobalamin", {"E53.8": 0.8}),
    Drug("M04AA01", "Allopurinol", {"M10.9": 0.6}),
    Drug("M05BA04", "Alendronic acid", {"M81.0": 0.6}),
    Drug("A02BC01", "Omeprazole", {"K21.9": 0.5, "K92.2": 0.3}, (_I, _O)),
    Drug("A02BC02", "Pantoprazole", {"K21.9": 0.5, "K92.2": 0.6}, (_C, _M, _R, _N, _K, _H)),
    Drug("R03AC02", "Salbutamol", {"J45.909": 0.7, "J44.9": 0.6, "J44.1": 0.7, "J45.901": 0.8}),
    Drug("R03AK07", "Formoterol and budesonide", {"J45.909": 0.35, "J44.9": 0.4}),
    Drug("R03BB04", "Tiotropium", {"J44.9": 0.5}),
    Drug("R03DC03", "Montelukast", {"J45.909": 0.2, "J30.9": 0.15}, (_R, _I)),
    Drug("R06AE07", "Cetirizine", {"J30.9": 0.5}),
    Drug("R01AD12", "Fluticasone", {"J30.9": 0.4, "J32.9": 0.6}),
    Drug("N06AB06", "Sertraline", {"F32.9": 0.45, "F41.1": 0.35}, (_N, _C, _O)),
    Drug("N06AB10", "Escitalopram", {"F32.9": 0.4, "F41.1": 0.35}, (_M, _R, _H)),
    Drug("N06AX21", "Duloxetine", {"F32.9": 0.3, "M79.7": 0.5, "E11.40": 0.3}, (_I, _K)),
    Drug("N05BA06", "Lorazepam", {"F41.1": 0.12, "F10.239": 0.8}),
    Drug("N05CF02", "Zolpidem", {"G47.00": 0.4}),
    Drug("N05AN01", "Lithium", {"F31.9": 0.5}),
    Drug("N05AH04", "Quetiapine", {"F31.9": 0.4, "F20.9": 0.4}),
    Drug("N05AX08", "Risperidone", {"F20.9": 0.5}),
    Drug("N03AX14", "Levetiracetam", {"G40.909": 0.7}),
    Drug("N03AX12", "Gabapentin", {"E11.40": 0.5, "G62.9": 0.5, "M54.50": 0.1}),
    Drug("N02CC01", "Sumatriptan", {"G43.909": 0.5}),
    Drug("N04BA02", "Levodopa and carbidopa", {"G20.A1": 0.85}),
    Drug("N06DA02", "Donepezil", {"F03.90": 0.5}),
    Drug("N07BC01", "Buprenorphine", {"F11.20": 0.6}),
    Drug("M01AE01", "Ibuprofen", {"M17.9": 0.3, "M54.50": 0.3, "M25.50": 0.4, "S93.409A": 0.6}, (_I, _H, _M)),
    Drug("N02BE01", "Paracetamol", {"M17.9": 0.3, "R51.9": 0.4, "R50.9": 0.6, "S72.009A": 0.7}, (_K, _C, _N, _O)),
    Drug("N02AA05", "Oxycodone", {"M54.50": 0.06, "S72.009A": 0.7, "C79.9": 0.5}),
    Drug("L04AX03", "Methotrexate", {"M06.9": 0.6, "L40.9": 0.15}),
    Drug("L04AB04", "Adalimumab", {"M06.9": 0.2, "K50.90": 0.4, "L40.9": 0.1}),
    Drug("A07EC02", "Mesalazine", {"K51.90": 0.7}),
    Drug("P01BA02", "Hydroxychloroquine", {"M32.9": 0.8}),
    Drug("H02AB07", "Prednisone", {"J44.1": 0.7, "J45.901": 0.7, "M32.9": 0.4, "E27.40": 0.8}),
    Drug("G04CA02", "Tamsulosin", {"N40.1": 0.6, "N20.0": 0.3}),
    Drug("S01EE01", "Latanoprost", {"H40.9": 0.75}),
    Drug("B03XA01", "Erythropoietin", {"D63.1": 0.6}),
    Drug("B03AA07", "Ferrous sulfate", {"D64.9": 0.5}),
    Drug("V03AE02", "Sevelamer", {"N18.6": 0.6}),
    Drug("L02BA01", "Tamoxifen", {"C50.919": 0.6}),
    Drug("L02AE02", "Leuprorelin", {"C61": 0.5}),
    Drug("L01FF02", "Pembrolizumab", {"C34.90": 0.5, "C43.9": 0.4}),
    Drug("L01BC02", "Fluorouracil", {"C18.9": 0.6, "C78.7": 0.6}),
    Drug("L01XG01", "Bortezomib", {"C90.00": 0.7}),
    Drug("L01FA01", "Rituximab", {"C83.30": 0.7}),
    Drug("D07AC01", "Betamethasone", {"L30.9": 0.45, "L40.9": 0.4}),
    Drug("D06BX01", "Metronidazole, topical", {"L71.9": 0.6}),
    Drug("A06AD15", "Macrogol", {"K59.00": 0.6}),
    Drug("G03CA03", "Estradiol", {"N95.1": 0.45}),
    Drug("G03AA12", "Drospirenone and ethinylestradiol", {"N80.9": 0.4}),
    Drug("G04BE03", "Sildenafil", {"N52.9": 0.6, "I27.20": 0.4}),
    Drug("G04BD08", "Solifenacin", {"R32": 0.4, "N31.9": 0.4}),
    Drug("G04CB01", "Finasteride", {"N40.1": 0.25}, (_K, _O, _C)),
    Drug("H03BB02", "Thiamazole", {"E05.90": 0.7}),
    Drug("N06BA04", "Methylphenidate", {"F90.9": 0.5}, (_R, _H, _M)),
    Drug("N06BA12", "Lisdexamfetamine", {"F90.9": 0.5}, (_N, _I, _C)),
    Drug("N06AX11", "Mirtazapine", {"F33.1": 0.3, "G47.00": 0.08}),
    Drug("N06AX12", "Bupropion", {"F33.1": 0.3, "F17.210": 0.12}),
    Drug("C02CA01", "Prazosin", {"F43.10": 0.3}),
    Drug("N04BC05", "Pramipexole", {"G25.81": 0.5, "G20.A1": 0.2}),
    Drug("N07AA02", "Pyridostigmine", {"G70.00": 0.85}),
    Drug("N07XX02", "Riluzole", {"G12.21": 0.8}),
    Drug("S01XA20", "Artificial tears", {"H04.129": 0.8}),
    Drug("C07AG02", "Carvedilol", {"I42.9": 0.6, "I85.00": 0.5}),
    Drug("C08DA01", "Verapamil", {"I47.1": 0.4}),
    Drug("J05AP55", "Sofosbuvir and velpatasvir", {"B18.2": 0.5}),
    Drug("J05AR20", "Bictegravir combination", {"B20": 0.85}),
    Drug("L01EL01", "Ibrutinib", {"C91.10": 0.4}),
    Drug("L01XA02", "Carboplatin", {"C56.9": 0.7, "C34.90": 0.3}),
    Drug("L01BC05", "Gemcitabine", {"C25.9": 0.6, "C67.9": 0.2}),
    Drug("L01EX01", "Sunitinib", {"C64.9": 0.35}),
    Drug("L04AB01", "Etanercept", {"M45.9": 0.45}, (_I, _H)),
    Drug("M05BX04", "Denosumab", {"C79.51": 0.6, "M81.0": 0.1}),
    Drug("M04AC01", "Colchicine", {"M10.00": 0.6}),
    Drug("A16AX10", "Levocarnitine", {"Z99.2": 0.15}),
    Drug("J05AB11", "Valaciclovir", {"B02.9": 0.75}, lasting=False),
    Drug("J01CR02", "Amoxicillin and clavulanate", {"J01.90": 0.6, "H66.90": 0.5, "K57.32": 0.5}, lasting=False),
    Drug("S01AA12", "Tobramycin, eye", {"H10.9": 0.6}, lasting=False),
    Drug("R06AA02", "Diphenhydramine", {"L50.9": 0.6}, lasting=False),
    Drug("B05BB01", "Electrolytes, infusion", {"E86.0": 0.8, "R11.2": 0.4, "A09": 0.2}, lasting=False),
    Drug("A12BA01", "Potassium chloride", {"E87.6": 0.85}, lasting=False),
    Drug("N05AD01", "Haloperidol", {"R41.0": 0.5}, lasting=False),
    Drug("A07AA09", "Vancomycin, oral", {"A04.72": 0.85}, lasting=False),
    Drug("C01CA24", "Epinephrine", {"I46.9": 0.9}, lasting=False),
    Drug("M01AB15", "Ketorolac", {"N23": 0.7, "M54.2": 0.2}, lasting=False),
    Drug("A04AA01", "Ondansetron", {"A09": 0.6, "C18.9": 0.3, "R10.9": 0.2, "K85.90": 0.5}, lasting=False),
    Drug("J01CA04", "Amoxicillin", {"J06.9": 0.25, "J32.9": 0.2}, (_H, _M, _N), lasting=False),
    Drug("J01FA10", "Azithromycin", {"J06.9": 0.25, "J44.1": 0.5, "J18.9": 0.6}, (_R, _C, _I), lasting=False),
    Drug("J01DD04", "Ceftriaxone", {"J18.9": 0.8, "N39.0": 0.4, "K81.0": 0.6}, lasting=False),
    Drug("J01EE01", "Sulfamethoxazole and trimethoprim", {"N39.0": 0.5}, lasting=False),
    Drug("J01XA01", "Vancomycin", {"A41.9": 0.8, "L03.90": 0.35, "D70.1": 0.5}, lasting=False),
    Drug("J01CR05", "Piperacillin and tazobactam", {"A41.9": 0.8, "D70.1": 0.7}, lasting=False),
    Drug("J05AH02", "Oseltamivir", {"J10.1": 0.7}, lasting=False),
    Drug("J05AB16", "Remdesivir", {"U07.1": 0.3}, lasting=False),
    Drug("B01AB05", "Enoxaparin", {"I21.4": 0.7, "I26.99": 0.8, "S72.009A": 0.7}, lasting=False),
    Drug("C01CA03", "Norepinephrine", {"A41.9": 0.4}, lasting=False),
    Drug("V03AB15", "Naloxone", {"T50.901A": 0.6}, lasting=False),
)

_OFFICE = ("OUTPATIENT",)
_ACUTE = ("EMERGENCY", "INPATIENT", "ICU")
_ANY = ("OUTPATIENT", "EMERGENCY", "INPATIENT", "ICU")

# Evaluation and management numbers by encounter type and, for office visits, by the number of conditions coded
# (at most 2, 3 to 5, 6 or more); the first visit of a subject has its own.
FIRST_VISIT_CODE = "99204"
OFFICE_CODES = ("99213", "99214", "99215")
TELEHEALTH_CODE = "99422"
EMERGENCY_CODES = ("99283", "99284", "99285")
ADMISSION_CODE, WARD_DAY_CODE, INTENSIVE_DAY_CODE = "99223", "99232", "99291"

PROCEDURES = (
    Procedure("93000", {"I10": 0.06, "I25.10": 0.7, "I48.91": 0.75, "R07.9": 0.9, "R55": 0.85, "I21.4": 0.95}, _ANY),
    Procedure("93306", {"I50.9": 0.35, "I35.0": 0.7, "I34.0": 0.7, "I50.23": 0.7}, _ANY),
    Procedure("93458", {"I21.4": 0.7}, ("INPATIENT", "ICU")),
    Procedure("33208", {"Z95.0": 0.1}, ("INPATIENT",)),
    Procedure("94010", {"J44.9": 0.6, "J45.909": 0.5, "J84.10": 0.8}),
    Procedure("94660", {"J96.01": 0.6, "G47.33": 0.05}, _ANY),
    Procedure("95810", {"G47.33": 0.12}),
    Procedure("71046", {"J18.9": 0.95, "J44.1": 0.85, "I50.23": 0.85, "J10.1": 0.4, "U07.1": 0.7, "R07.9": 0.5}, _ANY),
    Procedure("71275", {"I26.99": 0.95}, _ACUTE),
    Procedure("70450", {"I63.9": 0.95, "S06.0X0A": 0.8, "G45.9": 0.8, "R51.9": 0.3, "R55": 0.3}, _ACUTE),
    Procedure("70551", {"G35": 0.4, "I63.9": 0.7, "G43.909": 0.08}, _ANY),
    Procedure("95816", {"G40.909": 0.35}, _ANY),
    Procedure("74177", {"R10.9": 0.4, "K35.80": 0.9, "K85.90": 0.8, "K81.0": 0.5}, _ACUTE),
    Procedure("44970", {"K35.80": 0.85}, ("INPATIENT",)),
    Procedure("47562", {"K81.0": 0.75}, ("INPATIENT",)),
    Procedure("43235", {"K92.2": 0.8, "K21.9": 0.08}, _ANY),
    Procedure("45378", {"D12.6": 0.3, "K51.90": 0.3, "K50.90": 0.25, "K57.30": 0.15}),
    Procedure("27447", {"M17.9": 0.12}, ("INPATIENT",)),
    Procedure("27236", {"S72.009A": 0.85}, ("INPATIENT",)),
    Procedure("20610", {"M17.9": 0.35}),
    Procedure("97110", {"M54.50": 0.4, "I69.30": 0.4, "S93.409A": 0.2}),
    Procedure("73610", {"S93.409A": 0.85}, ("EMERGENCY", "OUTPATIENT")),
    Procedure("77080", {"M81.0": 0.4}),
    Procedure("92014", {"H26.9": 0.9, "H40.9": 0.9, "H35.30": 0.9, "E11.319": 0.9}),
    Procedure("66984", {"H26.9": 0.15}),
    Procedure("67028", {"H35.30": 0.6}),
    Procedure("90834", {"F32.9": 0.5, "F41.1": 0.45, "F31.9": 0.4, "F20.9": 0.4}),
    Procedure("90935", {"N18.6": 0.85}, ("OUTPATIENT", "INPATIENT", "ICU")),
    Procedure("96413", {"C34.90": 0.6, "C18.9": 0.5, "C83.30": 0.6, "C90.00": 0.6, "C79.9": 0.3}),
    Procedure("77067", {"C50.919": 0.3, "Z00.00": 0.2}),
    Procedure("36556", {"A41.9": 0.5}, ("ICU",)),
    Procedure("31500", {"J96.01": 0.6}, ("ICU",)),
    Procedure("36430", {"K92.2": 0.5, "D70.1": 0.3}, ("INPATIENT", "ICU")),
    Procedure("11102", {"C44.91": 0.4, "L57.0": 0.1, "C43.9": 0.2}),
    Procedure("17000", {"L57.0": 0.6}),
    Procedure("92557", {"H90.3": 0.4}),
    Procedure("97140", {"M47.816": 0.3, "M54.2": 0.3}),
    Procedure("27130", {"M16.9": 0.12}, ("INPATIENT",)),
    Procedure("64721", {"G56.00": 0.12}),
    Procedure("93970", {"I82.409": 0.9, "I87.2": 0.2}, _ANY),
    Procedure("92950", {"I46.9": 0.9}, _ACUTE),
    Procedure("74176", {"N23": 0.8, "K56.60": 0.8, "K57.32": 0.85}, _ACUTE),
    Procedure("44120", {"K56.60": 0.3}, ("INPATIENT",)),
    Procedure("51702", {"R33.9": 0.8, "N31.9": 0.15}, _ANY),
    Procedure("52000", {"C67.9": 0.5, "N31.9": 0.1}),
    Procedure("12001", {"S61.409A": 0.85}, ("EMERGENCY", "OUTPATIENT")),
    Procedure("25605", {"S52.501A": 0.6}, ("EMERGENCY",)),
    Procedure("96360", {"E86.0": 0.7, "R11.2": 0.4}, ("EMERGENCY",)),
    Procedure("76830", {"D25.9": 0.3, "N80.9": 0.3, "C56.9": 0.3}),
    Procedure("58571", {"D25.9": 0.15}, ("INPATIENT",)),
    Procedure("92928", {"I21.4": 0.45}, ("INPATIENT", "ICU")),
    Procedure("45380", {"Z12.11": 0.9}),
    Procedure("96127", {"F90.9": 0.3, "F43.10": 0.3, "F33.1": 0.3}),
    Procedure("90471", {"Z23": 0.95}),
    Procedure("83036", {"E11.9": 0.5, "R73.03": 0.4}),
    Procedure("10060", {"L03.90": 0.3}, ("EMERGENCY", "OUTPATIENT")),
)
